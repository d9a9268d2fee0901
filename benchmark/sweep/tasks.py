"""The tasks of a run: train a model, measure a cell, draw a score from cells. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmlbench.attacks.base import Attack
from dmlbench.common.hashing import identity
from dmlbench.models.base import Model
from dmlbench.storage.cell import About, ColumnInfo, PlannedCell
from dmlbench.training.job import Training


@dataclass(frozen=True)
class Weights:
    """Weights to measure.

    Attributes:
        model: the network.
        path: the checkpoint file; None for a network in memory, which ``model`` holds.
        facts: what of it decides a number: checkpoint digest, training run, network.
        about: the row that its cells belong to.
        seed: decides the targets of attacks.
    """

    model: Model
    path: Path | None
    facts: dict[str, Any]
    about: About
    seed: int

    @property
    def id(self) -> str:
        """The training run, or of weights from elsewhere their digest."""
        return str(self.facts.get("training", self.facts["checkpoint"]))


@dataclass(frozen=True)
class PlannedAttack:
    """An attack as every model of a run meets it.

    Attributes:
        attack: resolved.
        queries: how many of the test images it perturbs; None: each.
        facts, about, columns: what it adds to a cell.
    """

    attack: Attack
    queries: int | None
    facts: dict[str, Any]
    about: dict[str, str]
    columns: dict[str, ColumnInfo]


@dataclass(frozen=True)
class Train:
    """The task of training a model; its cell is stored only if that fails.

    Attributes:
        afresh: whether to throw away a model that is there.
    """

    training: Training
    cell: PlannedCell
    afresh: bool = False

    @property
    def model(self) -> str:
        """What a process keeps in memory between tasks of one model."""
        return self.training.id

    @property
    def title(self) -> str:
        """For people."""
        return f"training {self.cell.about.label} (seed {self.cell.about.seed})"


@dataclass(frozen=True)
class Measure:
    """The task of measuring weights, clean or under an attack: one cell."""

    weights: Weights
    cell: PlannedCell
    attack: Attack | None
    queries: int | None

    @property
    def model(self) -> str:
        """What a process keeps in memory between tasks of one model."""
        return self.weights.id

    @property
    def title(self) -> str:
        """For people."""
        return _title(self.cell)


@dataclass(frozen=True)
class Combine:
    """The task of drawing a score of a suite from what was measured: one cell.

    Robust R@1: a query counts if its top-1 is right on the clean image and under each of ES, LTM
    and GTM: what AutoAttack's per-example worst case is to classification. Or ERS.

    Attributes:
        sources: (identity, column) of the cells whose outcomes it takes.
    """

    weights: Weights
    cell: PlannedCell
    sources: tuple[tuple[str, str], ...]

    @property
    def model(self) -> str:
        """What a process keeps in memory between tasks of one model."""
        return self.weights.id

    @property
    def title(self) -> str:
        """For people."""
        return _title(self.cell)


CellTask = Measure | Combine  # a task that makes a cell
Task = Train | CellTask


def new_cell(facts: dict[str, Any], about: About, columns: dict[str, ColumnInfo]) -> PlannedCell:
    """A cell before it is measured."""
    return PlannedCell(id=identity(facts), facts=facts, about=about, columns=columns)


def _title(cell: PlannedCell) -> str:
    about = cell.about
    return f"{about.attack or 'benign'} on {about.label} (seed {about.seed})"
