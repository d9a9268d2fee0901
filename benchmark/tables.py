"""Cells as tables: tidy (a row a cell and metric) and wide (a row a model). Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dmlbench.metrics.bootstrap import Estimate
from dmlbench.metrics.ers import ERS_COLUMNS, ers

Cell = dict[str, Any]

BENIGN = ("R@1", "R@2", "mAP", "mAP@R", "mAP@10", "NMI")
SUBJECT = ("dataset", "model", "recipe", "defense", "label", "training_cost", "seed", "suite")
TIDY_COLUMNS = (
    *SUBJECT,
    "attack",
    "metric",
    "value",
    "low",
    "high",
    "n",
    "unit",
    "better",
    "status",
    "error",
    "cell",
    "checkpoint_sha256",
    "dmlbench",
    "git",
    "torch",
    "device",
    "started",
    "seconds",
)


def order(cell: Cell) -> tuple[Any, ...]:
    """Sort key: by data set, model, recipe, training cost, defense, seed, suite, then attack."""
    about = cell["about"]
    keys = ("dataset", "model", "recipe", "training_cost", "defense", "seed", "suite", "attack")
    return (*(about[key] for key in keys), cell["id"])


def tidy(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """A record of ``TIDY_COLUMNS`` for each cell and metric; a failed cell is one record."""
    records = []
    for cell in cells:
        about, made = cell["about"], cell["provenance"]
        common = {key: about[key] for key in (*SUBJECT, "attack")} | {
            "status": cell["status"],
            "error": cell.get("error", ""),
            "cell": cell["id"],
            "checkpoint_sha256": cell["facts"].get("checkpoint", ""),
            "dmlbench": made["dmlbench"],
            "git": made["git"] or "",
            "torch": made["libraries"].get("torch", ""),
            "device": made["device"],
            "started": datetime.fromtimestamp(cell["started"], UTC).isoformat(timespec="seconds"),
            "seconds": round(cell["seconds"], 2),
        }
        metrics = cell["metrics"] or {"": {}}
        records += [common | {"metric": name} | found for name, found in metrics.items()]
    return records


@dataclass
class Row:
    """A model and everything measured of it.

    Attributes:
        about: what it is: data set, model, defense, label, training cost, seed, suite.
        estimates: heading -> estimate; attack headings carry what differs from the protocol,
            as in ``CA+ (w=5)``.
        better: heading -> ``higher`` or ``lower`` is better for the defender.
        collapsed: whether the model still retrieves anything; None before it was measured.
        failed: heading or attack -> error of a failed cell.
    """

    about: dict[str, Any]
    estimates: dict[str, Estimate] = field(default_factory=dict)
    better: dict[str, str] = field(default_factory=dict)
    collapsed: bool | None = None
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def ers(self) -> float | None:
        """The Empirical Robustness Score where its ten columns are there (metric N only)."""
        if any(name not in self.estimates for name in ERS_COLUMNS):
            return None
        values = {name: self.estimates[name].value for name in ERS_COLUMNS}
        return ers(values) if values["ES:D"] <= 2 else None

    def record(self) -> dict[str, Any]:
        """For a CSV: values, and the interval of each attack column beside it."""
        record = dict(self.about) | {"collapsed": self.collapsed, "ERS": self.ers}
        for name, estimate in self.estimates.items():
            record[name] = estimate.value
            if name not in BENIGN:
                record |= {f"{name} low": estimate.low, f"{name} high": estimate.high}
        return record


def wide(cells: Sequence[Cell]) -> list[Row]:
    """One row a model (data set, model, defense, seed, suite, checkpoint), in ``order``."""
    rows: dict[tuple[Any, ...], Row] = {}
    for cell in sorted(cells, key=order):
        about = {key: cell["about"][key] for key in SUBJECT}
        key = (*about.values(), cell["facts"].get("checkpoint", ""))
        row = rows.setdefault(key, Row(about))
        if cell["status"] != "ok":
            row.failed[cell["about"]["attack"] or cell["facts"]["kind"]] = cell["error"]
            continue
        if cell["facts"]["kind"] == "benign":
            row.collapsed = cell["findings"]["collapsed"]
        variant = cell["about"]["attack"].partition(":")[2]
        for name, found in cell["metrics"].items():
            heading = f"{name} ({variant})" if variant else name
            row.estimates[heading] = Estimate(
                found["value"], found["low"], found["high"], found["n"]
            )
            row.better[heading] = found["better"]
    return list(rows.values())


def headings(rows: Sequence[Row]) -> list[str]:
    """Every heading of ``rows``: benign ones first, then attacks as they come."""
    seen = dict.fromkeys(name for row in rows for name in row.estimates)
    benign = [name for name in BENIGN if name in seen]
    return benign + [name for name in seen if name not in BENIGN]


def wide_columns(rows: Sequence[Row]) -> list[str]:
    """The columns of the wide CSV."""
    columns = [*SUBJECT, "collapsed"]
    for name in headings(rows):
        columns += [name] if name in BENIGN else [name, f"{name} low", f"{name} high"]
    return [*columns, "ERS"]
