"""The order of several models, with its probability, from outcomes of the same queries and seeds.

Another measurement may find another order for two reasons: other trainings, and other queries.
Both are drawn many times, the same for all models, and the models are ranked by their means in each
draw:

- Queries are many, so they are drawn with replacement (the bootstrap).
- Seeds are few. Drawn with replacement, three of them would show two thirds of their variance, and
  a 95% interval would hold the truth in three quarters of cases. So what another set of seeds would
  add to the means is drawn from Student's t with S - 1 degrees of freedom, with the variances and
  correlations of the means of the S seeds. It assumes that means over queries are normally
  distributed over seeds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd

from dmlbench.metrics.bootstrap import LEVEL, SEED
from dmlbench.metrics.names import ERS

LEAST_SEEDS = 3
DRAWS = 10_000
TAILS = (50 * (1 - LEVEL), 50 * (1 + LEVEL))  # percentiles of a 95% interval

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Placed:
    """A model in the order.

    Attributes:
        name: of the model.
        mean: over seeds and queries.
        low, high: its 95% interval over both; with one seed over queries alone.
        rank: mean rank over the draws; 1 is the best.
        first: probability that it is the best of all.
        above_next: probability that it is better than the next one in the order; None of the last.
    """

    name: str
    mean: float
    low: float
    high: float
    rank: float
    first: float
    above_next: float | None


def orders(outcomes: pd.DataFrame, unranked: Collection[str]) -> dict[str, list[Placed]]:
    """Suite -> the models in order of their ERS, over the seeds that all of them have.

    Those with fewer than ``LEAST_SEEDS`` seeds, and those that boards do not rank, are left out;
    and so is a suite in which the others share fewer.
    """
    found = {}
    kept = outcomes[(outcomes["metric"] == ERS) & ~outcomes["label"].isin(unranked)]
    for suite, part in kept.groupby("suite", sort=False):
        labels = {label: set(of["seed"]) for label, of in part.groupby("label")}
        labels = {label: of for label, of in labels.items() if len(of) >= LEAST_SEEDS}
        if not labels:
            continue
        seeds = sorted(set.intersection(*labels.values()))
        if len(seeds) < LEAST_SEEDS:
            continue
        shared = part[part["seed"].isin(seeds)]
        wide = shared.pivot(index=["label", "seed"], columns="query", values="value")
        values = {str(label): np.asarray(wide.loc[label], dtype=np.float64) for label in labels}
        found[str(suite)] = order(values)
    return found


def order(outcomes: Mapping[str, Values], draws: int = DRAWS) -> list[Placed]:
    """The models by falling mean; a higher outcome is better.

    Args:
        outcomes: name -> (S, Q) values of S seeds and Q queries, the same ones for all models. A
            query that is NaN in one model is left out of that seed in all of them.
        draws: how often seeds and queries are drawn. Where two models are equal in a draw, each
            counts as better in half of it.

    Raises:
        ValueError: the shapes differ, or a seed has no query with a value of every model.
    """
    means, drawn = _drawn(_together(list(outcomes.values())), draws)
    names = list(outcomes)
    better = (drawn[:, None] > drawn[None]) + 0.5 * (drawn[:, None] == drawn[None])
    ranks = len(drawn) - better.sum(1) + 0.5  # a model beats itself by half
    best = drawn == drawn.max(0)
    first = (best / best.sum(0)).mean(1)
    low, high = np.percentile(drawn, TAILS, axis=1)
    places = sorted(range(len(names)), key=lambda one: -means[one])
    following = dict(pairwise(places))
    return [
        Placed(
            name=names[one],
            mean=float(means[one]),
            low=float(low[one]),
            high=float(high[one]),
            rank=float(ranks[one].mean()),
            first=float(first[one]),
            above_next=float(better[one, following[one]].mean()) if one in following else None,
        )
        for one in places
    ]


@dataclass(frozen=True)
class Difference:
    """The outcomes of one model minus those of another.

    Attributes:
        mean: over seeds and queries.
        low, high: its 95% interval over both; with one seed over queries alone.
        p: two-sided p-value: twice the share of draws whose mean lies on the other side of zero.
    """

    mean: float
    low: float
    high: float
    p: float


def difference(left: Values, right: Values, draws: int = DRAWS) -> Difference:
    """``left`` - ``right``, both (S, Q) values of the same seeds and queries, as in ``order``.

    Raises:
        ValueError: the shapes differ, or a seed has no query with a value of both.
    """
    one, other = _together([left, right])
    (mean,), (drawn,) = _drawn((one - other)[None], draws)
    low, high = np.percentile(drawn, TAILS)
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return Difference(
        float(mean), float(low), float(high), min(1.0, 2 * (1 + beyond) / (1 + draws))
    )


def _together(outcomes: Sequence[Values]) -> Values:
    """(D, S, Q) values; a query of a seed that has none in one model is NaN in all of them."""
    if len({values.shape for values in outcomes}) != 1:
        raise ValueError("all models need the same seeds and queries")
    every = np.stack(outcomes)
    every[:, np.isnan(every).any(0)] = np.nan
    if np.isnan(every[0]).all(1).any():
        raise ValueError("no query has a value of every model")
    return every


def _means(every: Values, shares: Values) -> Values:
    """(D, S, R) means of (D, S, Q) values; (R, Q) shares are the weights of queries."""
    known = ~np.isnan(every[0])  # of all models: see _together
    if known.all():
        return every @ shares.T
    weights = known @ shares.T
    none = (weights == 0).any(0)  # draws without a known query of some seed: as if all were drawn
    if none.any():
        shares = np.where(none[:, None], 1 / shares.shape[1], shares)
        weights = known @ shares.T
    means: Values = np.where(known, every, 0) @ shares.T / weights
    return means


def _drawn(every: Values, draws: int) -> tuple[Values, Values]:
    """The mean of each model over seeds and queries, (D,), and draws of it, (D, draws)."""
    _, seeds, queries = every.shape
    of_queries, of_seeds = _shares(seeds, queries, draws)
    by_seed = _means(every, np.full((1, queries), 1 / queries))[:, :, 0]
    apart = by_seed - by_seed.mean(1, keepdims=True)
    drawn: Values = _means(every, of_queries).mean(1) + apart @ of_seeds
    return by_seed.mean(1), drawn


@lru_cache(maxsize=2)
def _shares(seeds: int, queries: int, draws: int) -> tuple[Values, Values]:
    """Random weights of the queries, (draws, Q), and of the seeds, (S, draws).

    Those of the queries are shares: times drawn over Q. Those of the seeds multiply the distances
    of the S means from their mean. Their sum is what other seeds would add to the mean: a draw of
    Student's t with S - 1 degrees of freedom, times the standard error of the mean.
    """
    generator = np.random.default_rng(SEED)
    of_queries = generator.multinomial(queries, np.full(queries, 1 / queries), draws) / queries
    if seeds == 1:
        return of_queries, np.zeros((1, draws))
    normal = generator.standard_normal((seeds, draws))
    squared = generator.chisquare(seeds - 1, draws)
    return of_queries, normal / np.sqrt(seeds * squared)
