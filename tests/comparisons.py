"""Measured cells and rows of invented models, to compare."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from dmlbench.analysis.csv_files import read_tidy
from dmlbench.analysis.records import Record
from dmlbench.common.hashing import identity
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.storage.cell import About, ColumnInfo, PlannedCell
from dmlbench.storage.store import Store
from tests.cells import MADE

N = 300


def digest(name: str) -> str:
    """The SHA-256 that stands for some weights."""
    return sha256(name.encode()).hexdigest()


def put(
    store: Store,
    defense: str,
    values: np.ndarray,
    seed: int = 0,
    versions: tuple[int, int] = (1, 1),
    **other: Any,
) -> None:
    """A measured CA+ cell of ``defense`` with these outcomes."""
    about: dict[str, Any] = {
        "dataset": "tiny",
        "model": "c2f2",
        "distance": "N",
        "recipe": "",
        "defense": defense,
        "label": defense.upper(),
        "resolved": f"{defense}:resolved=1",
        "training_cost": 1,
        "seed": seed,
        "precision": "fp32",
        "suite": "strict",
        "queries": "",
        "attack": "ca+",
        "attack_resolved": "ca+:w=1",
    } | other
    weights = digest(f"{defense}{seed}{other.get('model', '')}")
    facts = {"kind": "attack", "checkpoint": weights, "data": "pixels", "about": about}
    facts |= zip(("measure_version", "attack_version"), versions, strict=True)
    columns = {name: ColumnInfo("%", "higher") for name in ("CA+", "NMI")}
    planned = PlannedCell(id=identity(facts), facts=facts, about=About(**about), columns=columns)
    metrics = dict.fromkeys(columns, Estimate(50.0, None, None, N))
    cell = planned.measured(metrics, {}, 0.0, 1.0, MADE)
    store.put(cell, {"CA+": values, "CA+ clean": values + 1})


def with_interval(path: Path) -> list[Record]:
    """The rows of a CSV, with intervals that nobody measured."""
    return [one | {"low": 40.0, "high": 60.0} for one in read_tidy(path)]
