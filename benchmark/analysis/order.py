"""The order of several models, with its probability, from outcomes of the same queries and seeds.

A hierarchical bootstrap: each resample draws seeds with replacement and queries with replacement,
the same for all models, and ranks the models by their means. So the order is uncertain for both
reasons for which another measurement may find another one: other trainings, and other queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from dmlbench.metrics.bootstrap import LEVEL, SEED

RESAMPLES = 10_000
TAILS = (50 * (1 - LEVEL), 50 * (1 + LEVEL))  # percentiles of a 95% interval

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Placed:
    """A model in the order.

    Attributes:
        name: of the model.
        mean: over seeds and queries.
        low, high: its 95% interval over both.
        rank: mean rank over the resamples; 1 is the best.
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


def order(outcomes: Mapping[str, Values], resamples: int = RESAMPLES) -> list[Placed]:
    """The models by falling mean; a higher outcome is better.

    Args:
        outcomes: name -> (S, Q) values of S seeds and Q queries, the same ones for all models. A
            query that is NaN in one of them is left out.
        resamples: how often seeds and queries are drawn. Where two models are equal in a resample,
            each counts as better in half of it.

    Raises:
        ValueError: the shapes differ, or no query has a value everywhere.
    """
    every = _together(list(outcomes.values()))
    drawn = _resampled(every, resamples)
    better = (drawn[:, None] > drawn[None]) + 0.5 * (drawn[:, None] == drawn[None])
    ranks = len(drawn) - better.sum(1) + 0.5  # a model beats itself by half
    best = drawn == drawn.max(0)
    first = (best / best.sum(0)).mean(1)
    means, names = every.mean((1, 2)), list(outcomes)
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
        low, high: its 95% interval over both.
    """

    mean: float
    low: float
    high: float


def difference(left: Values, right: Values, resamples: int = RESAMPLES) -> Difference:
    """``left`` - ``right``, both (S, Q) values of the same seeds and queries, as in ``order``.

    Raises:
        ValueError: the shapes differ, or no query has a value in both.
    """
    one, other = _together([left, right])
    every = (one - other)[None]
    (drawn,) = _resampled(every, resamples)
    low, high = np.percentile(drawn, TAILS)
    return Difference(float(every.mean()), float(low), float(high))


def _together(outcomes: Sequence[Values]) -> Values:
    """(D, S, Q) values of the queries that have one in all models and seeds."""
    if len({values.shape for values in outcomes}) != 1:
        raise ValueError("all models need the same seeds and queries")
    every = np.stack(outcomes)
    every = every[:, :, ~np.isnan(every).any((0, 1))]
    if not every.size:
        raise ValueError("no query has a value of every model and seed")
    return every


def _resampled(every: Values, resamples: int) -> Values:
    """(D, resamples) means of (D, S, Q) values over drawn seeds and drawn queries."""
    of_seeds, of_queries = _drawn(*every.shape[1:], resamples)
    means: Values = np.einsum("dsr,rs->dr", every @ of_queries.T, of_seeds)
    return means


@lru_cache(maxsize=2)
def _drawn(seeds: int, queries: int, resamples: int) -> tuple[Values, Values]:
    """(resamples, S) and (resamples, Q) shares that each seed and query has in a resample."""
    generator = np.random.default_rng(SEED)
    of_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds
    of_queries = generator.multinomial(queries, np.full(queries, 1 / queries), resamples) / queries
    return of_seeds, of_queries
