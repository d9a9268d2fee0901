"""A cell: one measurement of a model, as a typed record. Its JSON is read and written here alone.

What a run plans (``PlannedCell``) is its identity, the facts behind it, its row in tables and its
columns. What is stored (``Cell``) adds what was measured, or why that failed, and what measured it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from dmlbench.common.errors import UserError
from dmlbench.common.files import json_bytes
from dmlbench.common.hashing import identity
from dmlbench.compute.provenance import Provenance
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.metrics.distance import SLACK, Metric

SCHEMA: Literal[3] = 3
PERCENT, UNBOUNDED = (0, 100), (-math.inf, math.inf)
ORDER = (
    "dataset",
    "model",
    "recipe",
    "training_cost",
    "defense",
    "seed",
    "suite",
    "queries",
    "attack",
)
"""What rows are sorted by."""

Count = Annotated[int, msgspec.Meta(ge=0)]


class About(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The row of a cell in tables, for people; ``facts`` decide the identity.

    Attributes:
        attack: spec as a user would write it; empty for clean images.
        attack_resolved: the same with every value that the suite fills in.
        dataset: spec of the data set.
        model: spec of the network.
        distance: N, E or C.
        recipe: where the training leaves the data set's recipe, ``epochs=2``; else empty.
        defense: spec as a user would write it.
        label: the defense in the papers' notation.
        resolved: spec of the defense with every value; empty if the training is not known.
        training_cost: forward and backward passes of a training step; 0 if it is not known.
        seed: of the training.
        precision: of the network in evaluation.
        suite: the definitions that the attack follows; empty for clean images.
        queries: how many test images were attacked, drawn at random; empty: all.
    """

    attack: str
    attack_resolved: str
    dataset: str
    model: str
    distance: Metric
    recipe: str
    defense: str
    label: str
    resolved: str
    training_cost: Count
    seed: Count
    precision: str
    suite: str
    queries: str


class ColumnInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The unit of a number (``%`` or nothing), and which direction is better for the defender."""

    unit: str
    better: Literal["higher", "lower"]


class ExceptionInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The error that ended a cell; None where it is not known (its process is gone)."""

    type: str | None
    traceback: str | None


class PlannedCell(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cell before it is measured.

    Attributes:
        id: ``identity(facts)``.
        facts: everything that decides its numbers, JSON types.
        about: its row in tables.
        columns: name of each number -> what it is; empty for a training.
    """

    id: str
    facts: dict[str, Any]
    about: About
    columns: dict[str, ColumnInfo]

    def measured(
        self,
        metrics: dict[str, Estimate],
        findings: dict[str, Any],
        started: float,
        seconds: float,
        provenance: Provenance,
    ) -> Cell:
        """The cell with its numbers."""
        return Cell(
            id=self.id,
            facts=self.facts,
            about=self.about,
            columns=self.columns,
            status="ok",
            metrics=metrics,
            findings=findings,
            started=started,
            seconds=seconds,
            provenance=provenance,
            schema=SCHEMA,
            outcomes=None,
        )

    def failed(
        self,
        error: str,
        exception: ExceptionInfo,
        started: float,
        seconds: float,
        provenance: Provenance,
    ) -> Cell:
        """The cell without numbers, and why."""
        cell = self.measured({}, {}, started, seconds, provenance)
        return msgspec.structs.replace(cell, status="failed", error=error, exception=exception)


class Cell(PlannedCell, frozen=True, kw_only=True, omit_defaults=True):
    """A cell as it is stored, measured or failed.

    Attributes:
        status: whether it has its numbers.
        error: one line for people; of a failed cell only.
        exception: where it was raised; of a failed cell only.
        metrics: name -> estimate, one for each of ``columns``; empty if it failed.
        findings: what else was seen, JSON types (``dmlbench.evaluation.Measurement``).
        started: seconds since 1970.
        seconds: how long it took.
        provenance: what measured it.
        schema: version of this record.
        outcomes: SHA-256 of the Parquet file with the outcome of each query, if there is one.
    """

    status: Literal["ok", "failed"]
    error: str = ""
    exception: ExceptionInfo | None = None
    metrics: dict[str, Estimate]
    findings: dict[str, Any]
    started: float
    seconds: float
    provenance: Provenance
    schema: Literal[3]
    outcomes: str | None

    @property
    def ok(self) -> bool:
        """True if it has its numbers."""
        return self.status == "ok"

    @property
    def versions(self) -> tuple[int, ...]:
        """Versions of the definitions it was measured with; newer ones compare greater."""
        return tuple(self.facts.get(key, 0) for key in ("measure_version", "attack_version"))

    @property
    def order(self) -> tuple[Any, ...]:
        """Sort key: ``ORDER``, then versions and identity."""
        return (*(getattr(self.about, key) for key in ORDER), self.versions, self.id)

    def as_json(self) -> dict[str, Any]:
        """The cell in JSON types, as it is stored."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


def encode(cell: Cell, place: Path) -> bytes:
    """The content of the file at ``place``.

    Raises:
        ValueError: ``decode`` would not take it.
    """
    content = json_bytes(cell.as_json())
    decode(content, place)
    return content


def decode(content: bytes, place: Path) -> Cell:
    """The cell in the file at ``place``, which is named after it; older schemas are brought up.

    Raises:
        UserError: a newer version wrote it.
        ValueError: it is damaged; the message says in what.
    """
    try:
        cell = _DECODER.decode(content)
    except msgspec.ValidationError:
        cell = msgspec.convert(_in_schema(msgspec.json.decode(content), place), Cell)
    if place.stem != cell.id or identity(cell.facts) != cell.id:
        raise ValueError("its name or its facts are not those of its id")
    if problem := _problem(cell):
        raise ValueError(problem)
    return cell


_DECODER = msgspec.json.Decoder(Cell)


def _problem(cell: Cell) -> str:
    """Why no measurement gives such a cell; empty if one can."""
    if not cell.ok:
        complete = cell.exception is not None and not cell.metrics
        return "" if complete else "a failed cell has an exception and no metrics"
    if cell.metrics.keys() != cell.columns.keys():
        return f"it needs the metrics {', '.join(cell.columns)}, got {', '.join(cell.metrics)}"
    problems = (
        implausible(name, cell.metrics[name], PERCENT if column.unit == "%" else UNBOUNDED)
        for name, column in cell.columns.items()
    )
    return next(filter(None, problems), "")


def implausible(name: str, estimate: Estimate, bounds: tuple[float, float]) -> str:
    """The reason why no measurement of a metric can give this estimate; empty if one can.

    Args:
        name: of the metric, ``CA+``.
        estimate: its value and interval.
        bounds: the least and the largest value that the metric can have.
    """
    value, low, high = estimate.value, estimate.low, estimate.high
    if not all(math.isfinite(number) for number in (value, low or 0, high or 0)):
        return f"{name} is {value:g} in [{low}, {high}]; it is finite"
    if (low is None) != (high is None) or (
        low is not None and high is not None and not low - SLACK <= value <= high + SLACK
    ):
        return f"value {value:g} is not within its interval [{low}, {high}]"
    if not bounds[0] - SLACK <= value <= bounds[1] + SLACK:
        return f"{name} is {value:g}; it is within {bounds[0]} and {bounds[1]}"
    return ""


def _in_schema(raw: Any, place: Path) -> dict[str, Any]:
    """The JSON of a cell in today's schema."""
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if not isinstance(schema, int) or schema < 1:
        raise ValueError("it has no schema")
    if schema > SCHEMA:
        raise UserError(
            f"{place} has schema {schema}, this version reads up to {SCHEMA}: update dmlbench"
        )
    for since in _MIGRATIONS[schema - 1 :]:
        raw = since(raw)
    return dict(raw)


def _since_1(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Schema 2 added the digest of the outcomes, and the exception of a failed cell."""
    added: dict[str, Any] = {"schema": 2, "outcomes": None}
    if raw.get("status") == "failed":
        added["exception"] = {"type": None, "traceback": None}
    return {**raw, **added}


def _since_2(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Schema 3 added the choice of queries; before, all were attacked."""
    about = raw.get("about")
    added = {"about": {**about, "queries": ""}} if isinstance(about, dict) else {}
    return {**raw, **added, "schema": 3}


_MIGRATIONS: tuple[Callable[[Mapping[str, Any]], dict[str, Any]], ...] = (_since_1, _since_2)
