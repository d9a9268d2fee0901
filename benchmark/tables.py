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
WORST = "Robust R@1"
MODEL = (
    "dataset",
    "model",
    "distance",
    "recipe",
    "defense",
    "label",
    "resolved",
    "training_cost",
    "seed",
    "precision",
)
SUBJECT = (*MODEL, "suite")
TIDY_COLUMNS = (
    *SUBJECT,
    "attack",
    "attack_resolved",
    "metric",
    "value",
    "low",
    "high",
    "n",
    "clean",
    "unit",
    "better",
    "status",
    "error",
    "cell",
    "versions",
    "checkpoint_sha256",
    "dmlbench",
    "git",
    "torch",
    "device",
    "started",
    "seconds",
)


def order(cell: Cell) -> tuple[Any, ...]:
    """Sort key: data set, model, recipe, training cost, defense, seed, suite, then attack."""
    about = cell["about"]
    keys = ("dataset", "model", "recipe", "training_cost", "defense", "seed", "suite", "attack")
    return (*(about[key] for key in keys), versions(cell), cell["id"])


def versions(cell: Cell) -> tuple[int, ...]:
    """The versions of the definitions that a cell was measured with; newer ones compare greater."""
    facts = cell["facts"]
    return tuple(facts.get(key, 0) for key in ("measure_version", "attack_version"))


def tidy(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """A record of ``TIDY_COLUMNS`` for each cell and metric; a failed cell is one record."""
    records = []
    for cell in cells:
        about, made = cell["about"], cell["provenance"]
        common = {key: about[key] for key in (*SUBJECT, "attack", "attack_resolved")} | {
            "status": cell["status"],
            "error": cell.get("error", ""),
            "cell": cell["id"],
            "versions": ".".join(map(str, versions(cell))),
            "checkpoint_sha256": cell["facts"].get("checkpoint", ""),
            "dmlbench": made["dmlbench"],
            "git": made["git"] or "",
            "torch": made["libraries"].get("torch", ""),
            "device": made["device"],
            "started": datetime.fromtimestamp(cell["started"], UTC).isoformat(timespec="seconds"),
            "seconds": round(cell["seconds"], 2),
        }
        if cell["status"] != "ok":
            records.append(common)
            continue
        clean = cell["findings"].get("clean", {})
        for name, found in cell["metrics"].items():
            direction = cell["columns"][name]
            extra = {"metric": name, "clean": clean.get(name, "")}
            records.append(common | found | direction | extra)
    return records


@dataclass
class Row:
    """A model and everything measured of it in one suite.

    Attributes:
        about: what it is (``SUBJECT``).
        estimates: heading -> estimate; attack headings carry what differs from the protocol,
            as in ``CA+ (w=5)``.
        better: heading -> ``higher`` or ``lower`` is better for the defender.
        digits: heading -> decimals, 1 for percentages and 3 for similarities and distances.
        collapsed: whether the model still retrieves anything; None before it was measured.
        failed: heading -> error of the cell that should have given it.
    """

    about: dict[str, Any]
    estimates: dict[str, Estimate] = field(default_factory=dict)
    better: dict[str, str] = field(default_factory=dict)
    digits: dict[str, int] = field(default_factory=dict)
    collapsed: bool | None = None
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def ers(self) -> float | None:
        """The Empirical Robustness Score where its ten columns are there (metric N only)."""
        complete = all(name in self.estimates for name in ERS_COLUMNS)
        if not complete or self.about["distance"] != "N":
            return None
        return ers({name: self.estimates[name].value for name in ERS_COLUMNS})

    def add(self, cell: Cell) -> None:
        """Take in what a cell of this row found, or that it failed."""
        variant = cell["about"]["attack"].partition(":")[2]
        for name, direction in cell["columns"].items():
            heading = f"{name} ({variant})" if variant else name
            self.better[heading] = direction["better"]
            self.digits[heading] = 1 if direction["unit"] == "%" else 3
            if cell["status"] != "ok":
                self.failed[heading] = cell["error"]
                continue
            found = cell["metrics"][name]
            self.estimates[heading] = Estimate(**found)
            self.failed.pop(heading, None)
        if cell["facts"]["kind"] == "training":
            self.failed["training"] = cell["error"]
        if cell["facts"]["kind"] == "benign" and cell["status"] == "ok":
            self.collapsed = cell["findings"]["collapsed"]

    def record(self) -> dict[str, Any]:
        """For a CSV: values, and the interval of each attack column beside it."""
        record = dict(self.about) | {"collapsed": self.collapsed, "ERS": self.ers}
        for name, estimate in self.estimates.items():
            record[name] = estimate.value
            if name not in BENIGN:
                record |= {f"{name} low": estimate.low, f"{name} high": estimate.high}
        columns = [name for name in self.failed if name in self.better]
        return record | dict.fromkeys(columns, "failed")


def wide(cells: Sequence[Cell]) -> list[Row]:
    """One row a model and suite, in ``order``; of two versions of a cell the newer counts.

    Cells that belong to no suite (benign metrics, a failed training) are part of every row of
    their model.
    """
    models: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in sorted(cells, key=order):
        about, facts = cell["about"], cell["facts"]
        key = (*(about[name] for name in MODEL), facts.get("checkpoint", ""))
        models.setdefault(key, []).append(cell)
    rows = []
    for group in models.values():
        about = {name: group[0]["about"][name] for name in MODEL}
        suites = dict.fromkeys(suite for c in group if (suite := c["about"]["suite"])) or {"": None}
        for suite in suites:
            row = Row(about | {"suite": suite})
            for cell in group:
                if cell["about"]["suite"] in ("", suite):
                    row.add(cell)
            rows.append(row)
    return rows


def headings(rows: Sequence[Row]) -> list[str]:
    """Every heading of ``rows``: benign metrics, ERS's columns in its order, then the others."""
    seen = dict.fromkeys(name for row in rows for name in row.better)
    first = [name for name in (*BENIGN, *ERS_COLUMNS) if name in seen]
    return first + [name for name in seen if name not in first]


def wide_columns(rows: Sequence[Row]) -> list[str]:
    """The columns of the wide CSV."""
    columns = [*SUBJECT, "collapsed"]
    for name in headings(rows):
        columns += [name] if name in BENIGN else [name, f"{name} low", f"{name} high"]
    return [*columns, "ERS"]
