"""A cell: one measurement of a model, as a typed record. Only this module knows its JSON.

A run plans a ``PlannedCell``: identity, facts, row in tables, columns. It stores a ``Cell``, which
adds the numbers, or the error, and the provenance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from dmlbench.common.files import json_bytes
from dmlbench.common.hashing import identity, sealed, unsealed
from dmlbench.common.numbers import LARGEST
from dmlbench.common.text import printable
from dmlbench.compute.provenance import Provenance
from dmlbench.core.flags import Flag
from dmlbench.core.naming import (
    DATASET_NAME,
    split_attack_seed,
    with_attack_seed,
    with_plain_paths,
)
from dmlbench.core.protocol import SUITES
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.metrics.distance import SLACK, Metric
from dmlbench.storage import findings

SCHEMA: Literal[4] = 4
SEALED_SINCE = 4  # the schema from which on a cell has a checksum; those before have none
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
    "eot",
    "attack",
)
"""Fields of ``About`` that the rows of tables are sorted by."""

Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
Seconds = Annotated[float, msgspec.Meta(ge=0, lt=2.5e11)]  # since 1970: before the year 9892
Filled = Annotated[str, msgspec.Meta(pattern=r"\S")]
DatasetSpec = Annotated[str, msgspec.Meta(pattern=rf"^{DATASET_NAME}(:|$)")]
Suite = Annotated[str, msgspec.Meta(pattern=f"^(|{'|'.join(SUITES)})$")]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class About(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The description of a cell that tables show. It is no part of the identity.

    Attributes:
        attack: spec of the attack in short, ``ca+``; empty for clean images.
        attack_resolved: the same spec with every value that the suite fills in.
        dataset: spec of the data set.
        model: spec of the network.
        distance: N, E or C.
        recipe: changes to the data set's training recipe, ``epochs=2``; empty without changes.
        defense: spec of the defense in short, ``hm``.
        label: the defense in the papers' notation.
        resolved: spec of the defense with every value; empty if the training is unknown.
        training_cost: forward and backward passes of a training step; 0 if unknown.
        seed: seed of the training.
        precision: floating-point precision of the network in evaluation, ``fp32``.
        suite: the definitions that the attack follows; empty for clean images.
        queries: number of test images that were attacked, drawn at random; empty: all.
        eot: draws of a randomised network that every number is the mean of; empty: it is not
            randomised.
    """

    attack: str
    attack_resolved: str
    dataset: DatasetSpec
    model: Filled
    distance: Metric
    recipe: str
    defense: str
    label: Filled
    resolved: str
    training_cost: Count
    seed: Count
    precision: Filled
    suite: Suite
    queries: str
    eot: str = ""


class ColumnInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The unit of a column (``%``, ``/255`` or empty) and the direction good for the defender."""

    unit: str
    better: Literal["higher", "lower"]


Columns = dict[Filled, ColumnInfo]


class Versions(msgspec.Struct):
    """The facts of a cell that ``Cell.versions`` reads. Most cells lack some of them."""

    measure_version: Count = 0
    attack_version: Count = 0
    external_files: Count = 0


class ExceptionInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The exception that ended a cell; None for a part that is unknown (the process died)."""

    type: str | None
    traceback: str | None


class PlannedCell(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cell before it is measured.

    Attributes:
        id: ``identity(facts)``, 16 hex digits.
        facts: everything that decides the numbers, JSON types.
        about: its description in tables.
        columns: metric -> unit and better direction; empty for a training.
    """

    id: str
    facts: dict[str, Any]
    about: About
    columns: Columns

    def measured(
        self,
        metrics: dict[str, Estimate],
        findings: dict[str, Any],
        started: float,
        seconds: float,
        provenance: Provenance,
    ) -> Cell:
        """The cell after a measurement that succeeded."""
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
        """The cell after a measurement that raised an error."""
        cell = self.measured({}, {}, started, seconds, provenance)
        return msgspec.structs.replace(cell, status="failed", error=error, exception=exception)


class Cell(PlannedCell, frozen=True, kw_only=True, omit_defaults=True):
    """A cell as it is stored, measured or failed.

    Attributes:
        status: ``ok`` with numbers, ``failed`` with an error.
        error: message of a failed cell; else empty.
        exception: type and traceback of a failed cell; else None.
        metrics: metric -> estimate, one for each of ``columns``; empty if the cell failed.
        findings: other observations, JSON types (``evaluation.measurement.Measurement``).
        started: seconds since 1970.
        seconds: duration.
        provenance: code, libraries and machine that measured it.
        schema: version of this record.
        outcomes: SHA-256 of the Parquet file with the outcome of each query; None without one.
    """

    status: Literal["ok", "failed"]
    error: str = ""
    exception: ExceptionInfo | None = None
    metrics: dict[str, Estimate]
    findings: dict[str, Any]
    started: Seconds
    seconds: Seconds
    provenance: Provenance
    schema: Literal[4]
    outcomes: Sha256 | None

    @property
    def ok(self) -> bool:
        """True if the measurement succeeded."""
        return self.status == "ok"

    @property
    def versions(self) -> tuple[int, ...]:
        """Versions of the measurement and of the attack; newer ones compare greater.

        A worst case that includes images from outside has the number of their files as a third.
        """
        versions = tuple(self.facts.get(key, 0) for key in ("measure_version", "attack_version"))
        files = self.facts.get("external_files")
        return versions if files is None else (*versions, files)

    @property
    def order(self) -> tuple[Any, ...]:
        """Sort key: ``ORDER``, then versions and identity."""
        return (*(getattr(self.about, key) for key in ORDER), self.versions, self.id)

    @property
    def flags(self) -> tuple[Flag, ...]:
        """The reasons not to trust its numbers, which are a part of its findings.

        Raises:
            msgspec.ValidationError: they are damaged; a cell that was read has been checked.
        """
        return msgspec.convert(self.findings.get("flags", ()), tuple[Flag, ...])

    def as_json(self) -> dict[str, Any]:
        """The cell in JSON types, as it is stored on disk, with the checksum of its content."""
        return sealed(msgspec.to_builtins(self))


def encode(cell: Cell, place: Path) -> bytes:
    """The bytes of the cell's file at ``place``.

    Raises:
        ValueError: ``decode`` would refuse them, e.g. for a value out of bounds.
    """
    content = json_bytes(cell.as_json())
    decode(content, place)
    return content


def decode(content: bytes, place: Path) -> Cell:
    """The cell in the file at ``place``, ``<id>.json``; older schemas are converted to today's.

    Raises:
        UserError: a newer version wrote it.
        ValueError: the file is damaged; the message says how.
    """
    try:
        cell = msgspec.convert(_in_schema(msgspec.json.decode(content), place), Cell)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if place.stem != cell.id or identity(cell.facts) != cell.id:
        raise ValueError("its name or its facts are not those of its id")
    if problem := _problem(cell):
        raise ValueError(problem)
    return named_by_seed(_shown(cell), cell.facts.get("seed"))


def named_by_seed(cell: Cell, seed: int | None) -> Cell:
    """The cell, whose name has the seed of its attacks if that is not the training's.

    ``plan.cells`` names new ones so; older versions did not, and a training may get another seed
    (``--training-seed``). ``seed``: None if it is not known.
    """
    about = cell.about
    if seed is None or not about.attack:
        return cell
    attack, _ = split_attack_seed(about.attack)
    name = attack if seed == about.seed else with_attack_seed(attack, seed)
    if name == about.attack:
        return cell
    return msgspec.structs.replace(cell, about=msgspec.structs.replace(about, attack=name))


def _shown(cell: Cell) -> Cell:
    """The cell with the texts of its row as a terminal and a CSV can show them.

    ``tasks.new_cell`` refuses other texts, but older versions stored them, and others may have.
    """
    texts = msgspec.structs.asdict(cell.about)
    plain = {name: printable(text) for name, text in texts.items() if isinstance(text, str)}
    plain["dataset"] = with_plain_paths(plain["dataset"])
    if plain.items() <= texts.items() and printable(cell.error) == cell.error:
        return cell
    about = msgspec.structs.replace(cell.about, **plain)
    return msgspec.structs.replace(cell, about=about, error=printable(cell.error))


def _problem(cell: Cell) -> str:
    """The reason why a cell cannot be right; empty if it can.

    Raises:
        msgspec.ValidationError: a version among its facts is no whole number.
    """
    msgspec.convert(cell.facts, Versions)
    if not cell.ok:
        complete = cell.exception is not None and not cell.metrics
        return "" if complete else "a failed cell has an exception and no metrics"
    if cell.metrics.keys() != cell.columns.keys():
        return f"it needs the metrics {', '.join(cell.columns)}, got {', '.join(cell.metrics)}"
    problems = (
        implausible(name, cell.metrics[name], PERCENT if column.unit == "%" else UNBOUNDED)
        for name, column in cell.columns.items()
    )
    return next(filter(None, problems), "") or findings.problem(cell.findings)


def implausible(name: str, estimate: Estimate, bounds: tuple[float, float]) -> str:
    """The reason why an estimate of a metric cannot be right; empty if it can.

    Args:
        name: name of the metric, ``CA+``.
        estimate: its value and interval.
        bounds: the least and the largest value that the metric can have, also in the interval.
    """
    value, low, high = estimate.value, estimate.low, estimate.high
    if not all(math.isfinite(number) for number in (value, low or 0, high or 0)):
        return f"{name} is {value:g} in [{low}, {high}]; it is finite"
    if (low is None) != (high is None) or (
        low is not None and high is not None and not low - SLACK <= value <= high + SLACK
    ):
        return f"value {value:g} is not within its interval [{low}, {high}]"
    for number in (value, low, high):
        if number is not None and not bounds[0] - SLACK <= number <= bounds[1] + SLACK:
            return f"{name} is {number:g}; it is within {bounds[0]} and {bounds[1]}"
    return ""


def _in_schema(raw: Any, place: Path) -> dict[str, Any]:
    """A cell's JSON, converted from an older schema to today's."""
    content = unsealed(raw, place, SCHEMA, SEALED_SINCE)
    for since in _MIGRATIONS[content["schema"] - 1 :]:
        content = since(content)
    return content


def _since_1(raw: Mapping[str, Any]) -> dict[str, Any]:
    """From schema 1 to 2, which added the digest of outcomes and the exception of failed cells."""
    added: dict[str, Any] = {"schema": 2, "outcomes": None}
    if raw.get("status") == "failed":
        added["exception"] = {"type": None, "traceback": None}
    return {**raw, **added}


def _since_2(raw: Mapping[str, Any]) -> dict[str, Any]:
    """From schema 2 to 3, which added the number of queries; before, all were attacked."""
    about = raw.get("about")
    added = {"about": {**about, "queries": ""}} if isinstance(about, dict) else {}
    return {**raw, **added, "schema": 3}


def _since_3(raw: Mapping[str, Any]) -> dict[str, Any]:
    """From schema 3 to 4, which added the checksum; it stands in the file alone."""
    return {**raw, "schema": 4}


_MIGRATIONS: tuple[Callable[[Mapping[str, Any]], dict[str, Any]], ...] = (
    _since_1,
    _since_2,
    _since_3,
)
