"""Compare two models by paired bootstrap differences.

Both models were attacked on the same queries, so the difference is taken query by query, and its
interval is far narrower than those of the two numbers. Of several seeds that both models have, the
differences are averaged, and the interval is over seeds and queries (``seeds.Spread``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dmlbench.analysis.lookup import checkpoint_path, measured_cells, refuse_several_sets
from dmlbench.analysis.records import Record, record_order, score_columns, tidy
from dmlbench.analysis.seeds import over
from dmlbench.common.errors import UserError
from dmlbench.core.naming import split_attack_seed, variant, with_attack_seed
from dmlbench.metrics.bootstrap import Estimate, bootstrap_mean
from dmlbench.storage.store import Store

if TYPE_CHECKING:
    import pandas as pd

TRAINED = ("dataset", "model", "recipe", "resolved")
"""Fields of ``About`` that differ between models, apart from the seed.

Fewer than ``seeds.CONFIGURATION``, which also tells the rows of one model apart: its suites,
precisions, numbers of queries and labels.
"""

SETTING = ("queries", "precision", "eot", "data")
"""Fields of a row that two numbers of one metric must share to be compared."""


@dataclass(frozen=True)
class Side:
    """One of the two models.

    Attributes:
        name: as the user wrote it.
        records: its numbers that were measured; of several seeds, but of one configuration.
        outcomes: identity of a cell -> what became of each query; a column for each metric.
    """

    name: str
    records: list[Record]
    outcomes: Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Difference:
    """The difference of two models in one metric.

    Attributes:
        suite: suite of the attack; empty for clean images.
        attack: spec of the attack; empty for clean images.
        metric: name of the metric.
        queries, precision, eot, data: what else both were measured with, as in a row of a table
            (``Record``).
        better: ``higher`` or ``lower`` is better for the defender.
        a: mean of the first model.
        b: mean of the second model.
        difference: b - a over the queries that have a value in both, with its 95% interval over
            seeds and queries; of one seed over queries.
        seeds: pairs of seeds, of the first and the second model, that were compared.
    """

    suite: str
    attack: str
    metric: str
    queries: str
    precision: str
    eot: str
    data: str
    better: str
    a: float
    b: float
    difference: Estimate
    seeds: tuple[tuple[int, int], ...]

    @property
    def favours(self) -> str:
        """``A`` or ``B``, the better model; empty if the interval contains zero."""
        low, high = self.difference.low, self.difference.high
        if low is None or high is None or low <= 0 <= high:
            return ""
        return "B" if (low > 0) == (self.better == "higher") else "A"


def find(name: str, store: Store, dataset: str | None) -> Side:
    """The cells of a model.

    Args:
        name: path of a checkpoint or of a model's folder, a model of the zoo, or a defense as
            ``lookup.as_stored`` spells it.
        store: the results folder; a checkpoint that lies in another is looked up there.
        dataset: spec of the data set; None: any.

    Raises:
        UserError: it has no cells, or several configurations have that name.
    """
    path = checkpoint_path(name, store.cells())
    if path is not None:
        home = (path.resolve() if path.is_dir() else path.resolve().parent).parent.parent
        store = Store(home) if (home / "cells").is_dir() else store
    where = [] if dataset is None else [f"dataset={dataset}"]
    cells = measured_cells(name, store, lambda c: dataset in (None, c.about.dataset), where)
    weights = {(c.about.seed, c.facts["checkpoint"]) for c in cells}
    found = {tuple(getattr(c.about, key) for key in TRAINED) for c in cells}
    refuse_several_sets(name, (c.about.dataset for c in cells))
    if path is None and (len(found) > 1 or len(weights) > len(dict(weights))):
        several = "; ".join(sorted(" ".join(filter(None, key)) for key in found))
        raise UserError(f"{name!r} is several models ({several}): name a checkpoint")
    return Side(name, tidy(cells), {c.id: store.outcomes(c.id) for c in cells})


def compare(a: Side, b: Side) -> list[Difference]:
    """The differences in all metrics that both models have on the same images, in table order.

    Raises:
        UserError: they share no metric.
    """
    ours, theirs = _by_metric(a), _by_metric(b)
    found = []
    for key, left in ours.items():
        right = theirs.get(key, {})
        seeds = paired_seeds(*({i: one.definition for i, one in s.items()} for s in (left, right)))
        if not seeds:
            continue
        x = np.array([left[i].values for i, _ in seeds])
        y = np.array([right[j].values for _, j in seeds])
        both = ~np.isnan(x + y).any(axis=0)
        about = left[seeds[0][0]]
        by_seed = (y - x)[:, both].mean(axis=1).tolist()
        difference = over(by_seed, bootstrap_mean((y - x).mean(axis=0)))
        means = float(x[:, both].mean()), float(y[:, both].mean())
        what = key.suite, about.attack, key.metric, key.queries, key.precision, key.eot, key.data
        found.append(Difference(*what, about.better, *means, difference, seeds))
    if not found:
        raise UserError(f"{a.name} and {b.name} share no measurement: run the same attacks on both")
    return found


@dataclass(frozen=True)
class Key:
    """Properties that two measurements must share to be compared.

    ``attack`` has all its keys. Under attacks with another seed than the training a metric is one
    of its own.
    """

    suite: str
    queries: str
    attack: str
    metric: str
    precision: str
    eot: str
    data: str


def by_key(records: Iterable[Record]) -> dict[Key, dict[int, tuple[Record, str]]]:
    """Measurement -> seed -> its record and definition; of several the last counts, as in tables.

    The definition is made of the versions of measurement and attack. That of a score is made of
    those of the columns that it is drawn from, which are in the same row.
    """
    ordered = sorted(records, key=record_order)
    digests = {one["data"] for one in ordered} - {""}
    only = digests.pop() if len(digests) == 1 else ""  # scores of older versions do not name it
    ordered = [one | {"data": one["data"] or only} for one in ordered]
    sources: dict[tuple[Any, ...], dict[str, str]] = {}  # row and variant -> metric -> versions
    for one in ordered:
        sources.setdefault(_place(one), {})[one["metric"]] = _versions(one)

    def definition(one: Record) -> str:
        columns = score_columns(one["metric"], one["suite"])
        if not columns:
            return _versions(one)
        same = sources[_place(one)]
        if not same.keys() & set(columns):  # over restarts: the plain attacks have the same
            same = sources.get((*_place(one)[:-1], ""), {})
        return ", ".join(f"{name} {same[name]}" for name in columns if name in same)

    found: dict[Key, dict[int, tuple[Record, str]]] = {}
    for one in ordered:
        found.setdefault(_key(one), {})[one["seed"]] = one, definition(one)
    return found


def _key(one: Record) -> Key:
    _, other = split_attack_seed(one["attack"])
    attack = one["attack_resolved"] or one["attack"]
    if other is not None and one["attack_resolved"]:
        attack = with_attack_seed(attack, other)
    what = one["suite"], one["queries"], attack, one["metric"]
    return Key(*what, one["precision"], one["eot"], one["data"])


def _place(one: Record) -> tuple[Any, ...]:
    row = tuple(one[key] for key in ("seed", "suite", "queries", "precision", "eot", "data"))
    return (*row, variant(one["attack"]))


def _versions(one: Record) -> str:
    """The versions that are part of the definition; a third counts external files."""
    return ".".join(one["versions"].split(".")[:2])


def paired_seeds(a: Mapping[int, str], b: Mapping[int, str]) -> tuple[tuple[int, int], ...]:
    """The seeds of two models that are compared: those that both have, of one definition.

    If they share none and have one each, these two: both were measured on the same images.

    Args:
        a, b: seed -> definition of what was measured.
    """
    pairs = [(seed, seed) for seed in a if seed in b]
    if not pairs and len(a) == len(b) == 1:
        pairs = [*zip(a, b, strict=True)]
    return tuple((i, j) for i, j in pairs if a[i] == b[j])


@dataclass(frozen=True)
class _Measured:
    """A metric of one seed: ``values`` (Q,) has one value for each query."""

    attack: str
    definition: str
    better: str
    values: npt.NDArray[np.float64]


def _by_metric(side: Side) -> dict[Key, dict[int, _Measured]]:
    """Metric -> seed -> values; a metric without a value for each query (NMI) is left out."""
    found: dict[Key, dict[int, _Measured]] = {}
    for key, seeds in by_key(side.records).items():
        for seed, (one, definition) in seeds.items():
            outcomes = side.outcomes[one["cell"]]
            if key.metric in outcomes:
                values = outcomes[key.metric].to_numpy(dtype=np.float64)
                measured = _Measured(one["attack"], definition, one["better"], values)
                found.setdefault(key, {})[seed] = measured
    return found
