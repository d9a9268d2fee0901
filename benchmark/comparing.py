"""Tell two models apart: paired bootstrap differences of what was measured of both.

The same queries meet the same attacks, so a difference is taken query by query, and its interval
is far narrower than those of the two numbers. Several seeds of a model are averaged query by
query first, over the seeds that both have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dmlbench.checkpoint import MANIFEST
from dmlbench.errors import UserError
from dmlbench.identity import file_sha256
from dmlbench.metrics.bootstrap import Estimate, bootstrap_mean
from dmlbench.store import Cell, Store

CONFIGURATION = ("dataset", "model", "recipe", "resolved", "precision")


@dataclass(frozen=True)
class Side:
    """One of the two models.

    Attributes:
        name: as the user wrote it.
        store: where its results lie.
        cells: what was measured of it; several seeds of one configuration at most.
    """

    name: str
    store: Store
    cells: list[Cell]


@dataclass(frozen=True)
class Difference:
    """What one metric says.

    Attributes:
        suite: of the attack; empty for the clean images.
        attack: spec of the attack; empty for the clean images.
        metric: name of the number.
        better: which direction is better for the defender.
        a: the mean of the first model.
        b: the mean of the second.
        difference: b - a over the queries that count for both, with its 95% interval.
        seeds: the seeds that both were trained with.
    """

    suite: str
    attack: str
    metric: str
    better: str
    a: float
    b: float
    difference: Estimate
    seeds: tuple[int, ...]

    @property
    def favours(self) -> str:
        """``A`` or ``B`` if the interval leaves zero out, else nothing."""
        low, high = self.difference.low, self.difference.high
        if low is None or high is None or low <= 0 <= high:
            return ""
        return "B" if (low > 0) == (self.better == "higher") else "A"


def find(name: str, store: Store, dataset: str | None) -> Side:
    """The model that ``name`` means: a checkpoint, a model's folder, or a defense in ``store``.

    Raises:
        UserError: nothing was measured of it, or several configurations answer to the name.
    """
    path = Path(name)
    if path.exists():
        digest = _digest(path)
        home = path.resolve().parents[1 if path.is_dir() else 2]
        if (home / "cells").is_dir():
            store = Store(home)
        cells = [c for c in store.cells() if c["facts"].get("checkpoint") == digest]
    else:
        cells = [c for c in store.cells() if name in _names(c)]
    cells = [
        c
        for c in cells
        if c["status"] == "ok"
        and c["facts"]["kind"] != "training"
        and dataset in (None, c["about"]["dataset"])
    ]
    if not cells:
        known = sorted({c["about"]["defense"] for c in store.cells()})
        hint = f"; measured there: {', '.join(known)}" if known else ""
        raise UserError(f"nothing was measured of {name!r} in {store.root}{hint}")
    found = {tuple(c["about"][key] for key in CONFIGURATION): c for c in cells}
    if len(found) > 1:
        several = "; ".join(" ".join(filter(None, key)) for key in found)
        raise UserError(f"{name!r} is several models ({several}): name a checkpoint, or --dataset")
    return Side(name, store, cells)


def compare(a: Side, b: Side) -> list[Difference]:
    """Every metric that was measured of both on the same images, in the order of tables.

    Raises:
        UserError: there is none.
    """
    ours, theirs = _by_metric(a), _by_metric(b)
    found = []
    for key in ours:
        left, right = ours[key], theirs.get(key, {})
        # two seeds of one configuration can be compared too
        pairs = [(seed, seed) for seed in left if seed in right]
        if not pairs and len(left) == len(right) == 1:
            pairs = [(next(iter(left)), next(iter(right)))]
        if not pairs:
            continue
        x = np.mean([_outcome(a, left[i], key.metric) for i, _ in pairs], axis=0)
        y = np.mean([_outcome(b, right[j], key.metric) for _, j in pairs], axis=0)
        both = ~np.isnan(x) & ~np.isnan(y)
        found.append(
            Difference(
                key.suite,
                next(iter(left.values()))["about"]["attack"],
                key.metric,
                next(iter(left.values()))["columns"][key.metric]["better"],
                float(x[both].mean()),
                float(y[both].mean()),
                bootstrap_mean((y - x)[both]),
                tuple(i for i, _ in pairs),
            )
        )
    if not found:
        raise UserError(f"{a.name} and {b.name} share no measurement: run the same attacks on both")
    return found


@dataclass(frozen=True)
class _Key:
    """What two measurements must agree in to be compared."""

    data: str
    suite: str
    attack: str
    metric: str


def _by_metric(side: Side) -> dict[_Key, dict[int, Cell]]:
    """Metric -> seed -> the cell that holds its outcomes."""
    found: dict[_Key, dict[int, Cell]] = {}
    for cell in side.cells:
        if "data" not in cell["facts"]:
            continue  # a worst case is made of other cells
        about = cell["about"]
        for metric in _measured(side.store, cell):
            key = _Key(cell["facts"]["data"], about["suite"], about["attack_resolved"], metric)
            found.setdefault(key, {})[about["seed"]] = cell
    return found


def _measured(store: Store, cell: Cell) -> Iterable[str]:
    """The metrics that have an outcome for each query (NMI has none)."""
    outcomes = store.outcomes(cell["id"])
    return [name for name in cell["columns"] if name in outcomes]


def _outcome(side: Side, cell: Cell, metric: str) -> npt.NDArray[np.float64]:
    return side.store.outcomes(cell["id"])[metric].to_numpy(dtype=np.float64)


def _names(cell: Cell) -> set[str]:
    about = cell["about"]
    return {about["defense"], about["label"], about["resolved"], cell["facts"].get("training", "")}


def _digest(path: Path) -> str:
    """SHA-256 of the weights that a file, or a model's folder, holds."""
    if path.is_file():
        return file_sha256(path)
    try:
        return str(json.loads((path / MANIFEST).read_bytes())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no model's folder: it has no {MANIFEST}") from None
