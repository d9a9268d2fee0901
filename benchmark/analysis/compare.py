"""Compare two models by paired bootstrap differences.

Both models were attacked on the same queries, so the difference is taken query by query, and its
interval is far narrower than those of the two numbers. Of several seeds that both models have, the
differences are averaged, and the interval is over seeds and queries (``seeds.Spread``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dmlbench.analysis.records import Record, record_order, score_columns, tidy
from dmlbench.analysis.seeds import over
from dmlbench.common.errors import UserError
from dmlbench.common.hashing import file_sha256
from dmlbench.core import spec
from dmlbench.core.naming import split_attack_seed, variant, with_attack_seed
from dmlbench.defenses.base import DEFENSES
from dmlbench.metrics.bootstrap import Estimate, bootstrap_mean
from dmlbench.storage.cell import Cell
from dmlbench.storage.checkpoint import MANIFEST, STATE, read_manifest, refuse_state
from dmlbench.storage.store import Store
from dmlbench.zoo.fetch import local_or_zoo
from dmlbench.zoo.registry import models

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
            ``as_stored`` spells it.
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
    if path is None and (len(found) > 1 or len(weights) > len(dict(weights))):
        several = "; ".join(sorted(" ".join(filter(None, key)) for key in found))
        raise UserError(f"{name!r} is several models ({several}): name a checkpoint, or --dataset")
    if len(sets := sorted({c.about.dataset for c in cells})) > 1:
        raise UserError(
            f"{name!r} was measured on several data sets: add --dataset {sets[0]}, "
            f"or {', '.join(sets[1:])}"
        )
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


def defined(records: Iterable[Record]) -> list[tuple[Record, str]]:
    """Each record with its definition, sorted: of several of a number the last counts.

    The definition is made of the versions of measurement and attack. That of a score is made of
    those of the columns that it is drawn from, which are in the same row.
    """
    ordered = sorted(records, key=record_order)
    versions: dict[tuple[Any, ...], dict[str, str]] = {}  # row and variant -> metric -> versions
    for one in ordered:
        own = ".".join(one["versions"].split(".")[:2])  # a third part is no part of the definition
        versions.setdefault(_place(one), {})[one["metric"]] = own

    def definition(one: Record) -> str:
        same = versions[_place(one)]
        columns = score_columns(one["metric"], one["suite"])
        if not columns:
            return same[one["metric"]]
        if not same.keys() & set(columns):  # over restarts: the plain attacks have the same
            same = versions.get((*_place(one)[:-1], ""), {})
        return ", ".join(f"{name} {same[name]}" for name in columns if name in same)

    return [(one, definition(one)) for one in ordered]


def _place(one: Record) -> tuple[Any, ...]:
    row = tuple(one[key] for key in ("seed", "suite", "queries", "precision", "eot"))
    return (*row, variant(one["attack"]))


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
class _Key:
    """Properties that two measurements must share to be compared."""

    suite: str
    queries: str
    attack: str
    metric: str
    precision: str
    eot: str
    data: str


@dataclass(frozen=True)
class _Measured:
    """A metric of one seed: ``values`` (Q,) has one value for each query."""

    attack: str
    definition: str
    better: str
    values: npt.NDArray[np.float64]


def _by_metric(side: Side) -> dict[_Key, dict[int, _Measured]]:
    """Metric -> seed -> values; a metric without a value for each query (NMI) is left out.

    Outcomes under attacks with another seed than the training are of metrics of their own. Of
    several measurements of a metric the last counts, as in tables.
    """
    digests = {one["data"] for one in side.records} - {""}
    only = digests.pop() if len(digests) == 1 else ""  # scores of older versions do not name it
    found: dict[_Key, dict[int, _Measured]] = {}
    for one, definition in defined(side.records):
        outcomes = side.outcomes[one["cell"]]
        if one["metric"] not in outcomes:
            continue
        _, other = split_attack_seed(one["attack"])
        attack = one["attack_resolved"] or one["attack"]
        if other is not None and one["attack_resolved"]:
            attack = with_attack_seed(attack, other)
        what = one["suite"], one["queries"], attack, one["metric"]
        key = _Key(*what, one["precision"], one["eot"], one["data"] or only)
        values = outcomes[one["metric"]].to_numpy(dtype=np.float64)
        measured = _Measured(one["attack"], definition, one["better"], values)
        found.setdefault(key, {})[one["seed"]] = measured
    return found


def as_stored(name: str) -> str:
    """A model's name as rows spell it: ``noise`` for ``noise.py:Noise``, keys in their order.

    What is no spec of a defense that is known here stays as it is.

    Raises:
        UserError: it names a file or a class that cannot be read.
    """
    pointed = spec.read_reference(name, DEFENSES)
    if pointed is None and name.partition(":")[0] not in DEFENSES.names():
        return name
    try:
        return spec.shown(spec.parse(name, DEFENSES))
    except UserError:
        if pointed is not None:
            raise
        return name  # an old row may have a key that there is no more


def measured_cells(
    name: str, store: Store, wanted: Callable[[Cell], bool], where: Iterable[str] = ()
) -> list[Cell]:
    """The stored cells of a model that are whole, measured and ``wanted``.

    Args:
        name: as in ``cells_of``.
        store: the results folder.
        wanted: true for the cells to take.
        where: the user's conditions among them, for the message.

    Raises:
        UserError: there are none.
    """
    stored = store.cells()
    found = [c for c in cells_of(name, stored) if wanted(c) and store.done(c.id) is not None]
    if not found:
        conditions = "".join(f" with {text}" for text in where)
        known = {
            f"{c.about.defense} on {c.about.dataset}" if conditions else c.about.defense
            for c in stored
            if store.done(c.id) is not None
        }
        raise UserError(
            f"nothing was measured of {name!r}{conditions} in {store.root}; measured there: "
            f"{', '.join(sorted(known)) or 'nothing'}"
        )
    return found


def cells_of(name: str | Path, cells: Sequence[Cell]) -> list[Cell]:
    """Those of ``cells`` that were measured of a model.

    Args:
        name: the checkpoint or the folder of a model; as text also its name in the zoo, or one that
            cells have (``names_of``).
        cells: stored cells.

    Raises:
        UserError: it is a folder that is no model's.
    """
    path = name if isinstance(name, Path) else checkpoint_path(name, cells)
    if path is None:
        return [cell for cell in cells if name in names_of(cell)]
    digest = weights_digest(path)
    return [cell for cell in cells if cell.facts.get("checkpoint") == digest]


def has_cells(name: str, cells: Sequence[Cell]) -> bool:
    """True if a model may have outcomes of single queries: a path, or a name among the cells."""
    if name in models():
        return any(models()[name].manifest.sha256 == c.facts.get("checkpoint") for c in cells)
    path = checkpoint_path(name, cells)
    return path is not None or any(name in names_of(cell) for cell in cells)


def checkpoint_path(name: str, cells: Iterable[Cell]) -> Path | None:
    """The checkpoint or the folder of a model that ``name`` is the path of, or its zoo name.

    None if there is none. The name of a defense, or of a model among the cells, is no path, also
    where a file happens to be called so: ``./none`` is that file.
    """
    defense = name.partition(":")[0] in DEFENSES.names()
    if defense or any(name in names_of(cell) for cell in cells):
        return None
    path = local_or_zoo(name)
    return path if path.exists() else None


def names_of(cell: Cell) -> set[str]:
    """The names of the model of a cell: its defense, its label, its training."""
    about = cell.about
    return {about.defense, about.label, about.resolved, cell.facts.get("training", "")}


def weights_digest(path: Path) -> str:
    """SHA-256 of the weights in a file or in a model's folder."""
    refuse_state(path)
    if path.is_file():
        return file_sha256(path)
    manifest = read_manifest(path)
    if manifest is None:
        refuse_state(path / STATE)
        raise UserError(f"{path} is no model's folder: it has no {MANIFEST}")
    return manifest.sha256
