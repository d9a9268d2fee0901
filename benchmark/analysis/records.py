"""Cells as records: tidy (one for each cell and metric) and wide (one for each model).

A tidy record contains everything that a table or plot needs. So a board from stored cells and a
board from their CSV are the same. Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from msgspec.structs import asdict

from dmlbench.analysis.variants import variant_flags
from dmlbench.core.flags import Flag, read_flags, write_flags
from dmlbench.core.naming import by_number, split_heading, variant
from dmlbench.core.protocol import RECALL_ATTACKS
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.metrics.collapse import is_collapsed
from dmlbench.metrics.ers import ERS_COLUMNS, ers
from dmlbench.metrics.names import CLEAN, ERS, RECALLED, WORST
from dmlbench.storage.cell import ORDER, Cell

Record = dict[str, Any]

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
    "eot",
)
ROW = (*MODEL, "suite", "queries")
COLLAPSE = ("collapsed", "mean_cosine", "effective_rank")  # only for clean images
TIDY_COLUMNS = (
    *ROW,
    "attack",
    "attack_resolved",
    "metric",
    "value",
    "low",
    "high",
    "n",
    "clean",
    "deciles",
    "curve",
    *COLLAPSE,
    "unit",
    "better",
    "status",
    "error",
    "cell",
    "versions",
    "data",
    "checkpoint_sha256",
    "dmlbench",
    "git",
    "torch",
    "device",
    "started",
    "seconds",
    "flags",
)


def tidy(cells: Iterable[Cell]) -> list[Record]:
    """A record for each cell and metric, with keys of ``TIDY_COLUMNS``.

    Records of failed cells have no value; a failed training has one record without a metric.
    """
    records = []
    for cell in cells:
        found = cell.findings
        common = {key: getattr(cell.about, key) for key in (*ROW, "attack", "attack_resolved")}
        common |= {key: found.get(key, "") for key in COLLAPSE} | _origin(cell)
        common["flags"] = write_flags(cell.flags)
        common |= _collapsed(cell)
        if not cell.columns:
            records.append(common | {"metric": ""})
        for name, column in cell.columns.items():
            record = common | {"metric": name} | asdict(column)
            if cell.ok:
                shares = found.get("deciles", {}).get(name, ())
                record |= asdict(cell.metrics[name])
                record |= {"clean": found.get("clean", {}).get(name, "")}
                record |= {"deciles": tuple(shares)}
                curve = found.get("curves", {}).get(name, ())
                record |= {"curve": tuple((x, share) for x, share in curve)}
            if name == "NMI" and "nmi_version" in found:
                record["versions"] += f".{found['nmi_version']}"
            records.append(record)
    return records


def _collapsed(cell: Cell) -> Record:
    """``collapsed`` by today's definition, where a cell says what it takes.

    Older ones called a model collapsed by its mean cosine or its R@1 alone.
    """
    chance, recall = cell.findings.get("chance R@1"), cell.metrics.get("R@1")
    cosine = cell.findings.get("mean_cosine")
    if chance is None or cosine is None or recall is None or recall.value is None:
        return {}
    return {"collapsed": is_collapsed(recall.value, chance, cosine)}


def _origin(cell: Cell) -> Record:
    """The columns for status, identity and provenance."""
    made = cell.provenance
    return {
        "status": cell.status,
        "error": cell.error,
        "cell": cell.id,
        "versions": ".".join(map(str, cell.versions)),
        "data": cell.facts.get("data", ""),
        "checkpoint_sha256": cell.facts.get("checkpoint", ""),
        "dmlbench": made.dmlbench,
        "git": made.git or "",
        "torch": made.libraries.get("torch", ""),
        "device": made.device,
        "started": datetime.fromtimestamp(cell.started, UTC).isoformat(timespec="seconds"),
        "seconds": round(cell.seconds, 2),
    }


@dataclass
class Row:
    """All numbers of a model in one suite and with one number of queries.

    Attributes:
        about: description of the row, with the keys of ``ROW``.
        records: heading -> tidy record of its estimate. The heading of an attack names the
            parameters that differ from the protocol, as in ``CA+ (w=5)``.
        estimates: heading -> estimate.
        better: heading -> ``higher`` or ``lower`` is better for the defender.
        digits: heading -> decimals, 1 for percentages and 3 for similarities and distances.
        collapsed: True if the model retrieves nothing any more; None if not measured.
        failed: heading -> tidy record of its failed cell.
        flags: heading -> the reasons not to trust its number, where there are any.
    """

    about: dict[str, Any]
    records: dict[str, Record] = field(default_factory=dict)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    better: dict[str, str] = field(default_factory=dict)
    digits: dict[str, int] = field(default_factory=dict)
    collapsed: bool | None = None
    failed: dict[str, Record] = field(default_factory=dict)
    flags: dict[str, tuple[Flag, ...]] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Add a number, or the error of a failed cell, in the place of what had that heading."""
        name, changed = record["metric"], variant(record["attack"])
        if not name:
            self.failed["training"] = record
            return
        heading = f"{name} ({changed})" if changed else name
        self.better[heading] = record["better"]
        self.digits[heading] = 1 if record["unit"] == "%" else 3
        if record["status"] != "ok":
            self.failed[heading] = record
            for known in (self.records, self.estimates, self.flags):
                known.pop(heading, None)
            return
        self.failed.pop(heading, None)
        self.flags.pop(heading, None)
        if record["flags"]:
            self.flags[heading] = read_flags(record["flags"])
        self.records[heading] = record
        self.estimates[heading] = Estimate(
            record["value"], record["low"], record["high"], record["n"]
        )
        if record["collapsed"] != "":
            self.collapsed = record["collapsed"]

    def settle_worst_case(self) -> None:
        """Leave out each Robust R@1 that was drawn from a number that has failed since."""
        columns = score_columns(WORST, self.about["suite"])
        for score in list(self.estimates):
            metric, keys = split_heading(score)
            if metric != WORST:
                continue
            end = score.removeprefix(WORST) if "eps" in keys else ""
            if any(column + end in self.failed for column in columns):
                for known in (self.records, self.estimates, self.flags):
                    known.pop(score, None)

    def settle_ers(self) -> None:
        """Compute ERS from its ten columns if they are complete (metric N only).

        That of another radius, ``ERS (eps=4/255)``, is computed from the columns of that radius.
        The interval is taken from an ERS cell of the same columns; else there is none.
        """
        ends = [""]
        for name in self.estimates:
            metric, keys = split_heading(name)
            if metric in ("CA+", ERS) and "eps" in keys:
                ends.append(name.removeprefix(metric))
        for end in dict.fromkeys(ends):
            self._settle_ers(end)

    def _settle_ers(self, end: str) -> None:
        """Compute the ERS of the columns whose headings end with ``end``, e.g. `` (eps=4/255)``."""
        score = ERS + end
        found = {name: self.estimates.get(name + end) for name in ERS_COLUMNS}
        columns = {name: one.value for name, one in found.items() if one is not None}
        complete = self.about["distance"] == "N" and len(columns) == len(ERS_COLUMNS)
        value = ers(columns) if complete else math.nan
        drawn = self.estimates.get(score)
        if drawn is not None and not math.isclose(drawn.value, value, abs_tol=1e-6):
            del self.estimates[score], self.records[score]
        if complete:
            n = self.estimates["CA+" + end].n
            self.estimates.setdefault(score, Estimate(value, None, None, n))
            self.better[score], self.digits[score] = "higher", 1
            self.failed.pop(score, None)

    @property
    def data(self) -> str:
        """The digest of its images; empty if no number tells it."""
        return next((one["data"] for one in self.records.values() if one["data"]), "")

    @property
    def flag_names(self) -> str:
        """The names of its flags, notes left out, separated by commas."""
        every = (flag for flags in self.flags.values() for flag in flags if not flag.note)
        return ", ".join(sorted({flag.name for flag in every}))

    def record(self) -> dict[str, Any]:
        """The row for a CSV: values, each followed by its interval."""
        record = dict(self.about) | {"collapsed": self.collapsed, "flags": self.flag_names}
        for name, estimate in self.estimates.items():
            record[name] = estimate.value
            record |= {f"{name} low": estimate.low, f"{name} high": estimate.high}
        columns = [name for name in self.failed if name in self.better]
        return record | dict.fromkeys(columns, "failed")


def wide(cells: Iterable[Cell]) -> list[Row]:
    """One row for each model, suite and number of queries, sorted."""
    return rows(tidy(cells))


def rows(records: Iterable[Record]) -> list[Row]:
    """One row for each model, suite and number of queries, sorted.

    Of several records of a number one counts: of the newest definition, then one that did not
    fail, then the latest.

    Records without a suite (clean images, a failed training) are part of every row of their model.
    """
    models: dict[tuple[Any, ...], list[Record]] = {}
    for record in sorted(records, key=record_order):
        key = tuple(record[name] for name in (*MODEL, "data", "checkpoint_sha256"))
        models.setdefault(key, []).append(record)
    found = []
    for group in models.values():
        about = {name: group[0][name] for name in MODEL}
        attacked = dict.fromkeys((r["suite"], r["queries"]) for r in group if r["suite"])
        for suite, queries in attacked or {("", ""): None}:
            row = Row(about | {"suite": suite, "queries": queries})
            for record in group:
                if not record["suite"] or (record["suite"], record["queries"]) == (suite, queries):
                    row.add(record)
            row.settle_worst_case()
            row.settle_ers()
            # all distances of a collapsed model are tied: its R@1 may rise for no reason
            raised = {} if row.collapsed else variant_flags(row.records, suite)
            for heading, some in raised.items():
                row.flags[heading] = (*row.flags.get(heading, ()), *some)
            found.append(row)
    return found


def record_order(record: Record) -> tuple[Any, ...]:
    """Sort key: ``ORDER``; of several records of a number the one that counts is the last."""
    definition = tuple(int(part) for part in record["versions"].split("."))
    keys = (by_number(k) if isinstance(k := record[key], str) else k for key in ORDER)
    return (*keys, definition, record["status"] == "ok", record["started"], record["cell"])


def headings(rows: Sequence[Row]) -> list[str]:
    """Every heading of ``rows``: clean metrics, the columns of ERS, others, scores."""
    seen = dict.fromkeys(name for row in rows for name in row.better)
    first = [name for name in (*CLEAN, *ERS_COLUMNS) if name in seen]
    last = scores(seen)
    return [*first, *(name for name in seen if name not in {*first, *last}), *last]


def scores(names: Iterable[str]) -> list[str]:
    """The scores among ``names``, which are computed from other columns, in table order."""
    found = [name for name in names if split_heading(name)[0] in (WORST, ERS)]
    return sorted(found, key=lambda name: (split_heading(name)[0] == ERS, by_number(name)))


def score_columns(score: str, suite: str) -> tuple[str, ...]:
    """The columns under attack that a score is drawn from in a suite; empty if it is no score."""
    if score == ERS:
        return ERS_COLUMNS
    return tuple(RECALLED[a] for a in RECALL_ATTACKS.get(suite, ()) if score == WORST)


def wide_columns(rows: Sequence[Row]) -> list[str]:
    """The columns of the wide CSV."""
    columns = [*ROW, "collapsed", "flags"]
    for name in headings(rows):
        columns += [name, f"{name} low", f"{name} high"]
    return columns
