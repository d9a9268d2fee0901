"""Cells and manifests for tests: made, not measured."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from dmlbench.common.hashing import identity
from dmlbench.compute.provenance import Provenance
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.storage import checkpoint
from dmlbench.storage.cell import About, Cell, ColumnInfo, ExceptionInfo, PlannedCell

MADE = Provenance(
    dmlbench="0",
    git=None,
    python="3",
    platform="Linux",
    libraries={"torch": "2"},
    device="cpu",
    threads=1,
    argv=[],
)


def manifest(**fields: Any) -> checkpoint.Manifest:
    """A manifest of weights that may be nowhere."""
    named: dict[str, Any] = {
        "schema": checkpoint.MANIFEST_SCHEMA,
        "checkpoint": checkpoint.WEIGHTS,
        "sha256": "0" * 64,
        "training_id": identity({"seed": 0}),
        "training": {"seed": 0},
        "dataset": "tiny",
        "defense": "hm",
        "label": "HM",
        "training_cost": 9,
        "parameters": 1,
        "history": [{"loss": 1.0, "hardness": None}],
        "seconds": 1.0,
        "started": 0.0,
        "provenance": MADE,
    }
    return checkpoint.Manifest(**named | fields)


def cell(
    metric: str = "CA+",
    value: float = 12.5,
    versions: dict[str, int] | None = None,
    **about: Any,
) -> Cell:
    facts = {
        "kind": "attack",
        "checkpoint": f"c0ffee{about.get('seed') or ''}",
        "about": about,
        "metric": metric,
    }
    facts |= versions or {}
    subject: dict[str, Any] = {
        "dataset": "tiny",
        "model": "c2f2",
        "distance": "N",
        "recipe": "",
        "resolved": "hm:eta=8",
        "precision": "fp32",
        "queries": "",
        "attack_resolved": "",
        "defense": "hm",
        "label": "HM[S,g_LGA]&ICS",
        "training_cost": 9,
        "seed": 0,
        "suite": "strict",
        "attack": metric.lower().partition(":")[0],
    }
    planned = PlannedCell(
        id=identity(facts),
        facts=facts,
        about=About(**subject | about),
        columns={metric: ColumnInfo("%", "higher")},
    )
    return planned.measured({metric: Estimate(value, value - 1, value + 1, 40)}, {}, 0.0, 1.0, MADE)


def failing(one: PlannedCell, error: str = "boom") -> Cell:
    """The cell, failed."""
    return one.failed(error, ExceptionInfo("RuntimeError", None), 0.0, 1.0, MADE)


def with_facts(one: Cell, **facts: Any) -> Cell:
    """A cell that is told from ``one`` by these facts."""
    facts = one.facts | facts
    return replace(one, id=identity(facts), facts=facts)
