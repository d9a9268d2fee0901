"""The tasks of a run: train a model, measure a cell, combine cells. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from dmlbench.attacks.base import Attack
from dmlbench.common.errors import UserError
from dmlbench.common.hashing import identity
from dmlbench.common.text import printable
from dmlbench.models.base import Model
from dmlbench.storage.cell import About, Columns, PlannedCell, Versions
from dmlbench.training.job import Training


@dataclass(frozen=True)
class Weights:
    """Weights that are measured.

    Attributes:
        model: the network.
        path: the checkpoint file; None for a network in memory, which ``model`` holds.
        facts: what of it decides a number: checkpoint digest, training run, network.
        about: the row that its cells belong to.
        seed: decides the targets of attacks.
        name: of the model in progress and messages; empty: its label.
    """

    model: Model
    path: Path | None
    facts: dict[str, Any]
    about: About
    seed: int
    name: str = ""

    @property
    def id(self) -> str:
        """The identity of the training; the digest of the weights if that is unknown."""
        return str(self.facts.get("training", self.facts["checkpoint"]))

    @property
    def trained_with(self) -> int | None:
        """The seed of the training; None if the training is unknown."""
        return self.about.seed if "training" in self.facts else None


@dataclass(frozen=True)
class PlannedAttack:
    """An attack of a run, the same for every model.

    Attributes:
        attack: the attack, no field ``auto``.
        queries: number of test images that it perturbs; None: all.
        facts, about, columns: the parts of a cell that depend on the attack.
        recalls: also measure R@K of the moved query; their columns are among ``columns``.
    """

    attack: Attack
    queries: int | None
    facts: dict[str, Any]
    about: dict[str, str]
    columns: Columns
    recalls: bool = False


@dataclass(frozen=True)
class Train:
    """The task of training a model.

    Attributes:
        training: the training.
        cell: is stored, as failed, only if the training fails.
    """

    training: Training
    cell: PlannedCell

    @property
    def model(self) -> str:
        """The identity of the model, which a worker keeps in memory from task to task."""
        return self.training.id

    @property
    def title(self) -> str:
        """The name of the task in messages."""
        return f"training {self.training.shown} (seed {self.training.seed})"


@dataclass(frozen=True)
class _OfWeights:
    """A task whose result is a cell.

    Attributes:
        weights: the weights.
        cell: the cell, without its result.
    """

    weights: Weights
    cell: PlannedCell

    @property
    def model(self) -> str:
        """The identity of the model, which a worker keeps in memory from task to task."""
        return self.weights.id

    @property
    def title(self) -> str:
        """The name of the task in messages."""
        about = self.cell.about
        name = self.weights.name or about.label
        return f"{about.attack or 'clean images'} on {name} (seed {about.seed})"


@dataclass(frozen=True)
class Measure(_OfWeights):
    """The task of measuring weights: one cell.

    Attributes:
        attack: the attack; None: clean images (benign).
        queries: number of test images that are perturbed; None: all.
        recalls: also measure R@K of the moved query.
    """

    attack: Attack | None
    queries: int | None
    recalls: bool = False


@dataclass(frozen=True)
class Combine(_OfWeights):
    """The task of computing Robust R@1 or ERS from measured cells of one suite: one cell.

    Robust R@1 is the worst case of each query, as AutoAttack takes it for classification: a query
    counts if its nearest neighbour is right on the clean image and under each of ES, LTM and GTM
    (and ``top1``, in the suite auto).

    Attributes:
        sources: (identity of a cell, column) of each input.
    """

    sources: tuple[tuple[str, str], ...]


CellTask = Measure | Combine
Task = Train | CellTask


def new_cell(facts: dict[str, Any], about: About, columns: Columns) -> PlannedCell:
    """Create a cell that has no result yet.

    Args:
        facts: the facts that decide its numbers; their hash is its identity.
        about: the description of model and attack in a row of a table.
        columns: name of each number -> its unit and the better direction.

    Raises:
        UserError: a cell cannot be described so: a text is empty, or has a control character, or a
            version is no whole number.
    """
    texts = {"label": about.label, **msgspec.structs.asdict(about)}  # the one that users give first
    for name, text in (*texts.items(), *(("column", name) for name in columns)):
        if isinstance(text, str) and (printable(text) != text or "\n" in text):
            raise UserError(
                f"{name} {text!r} has a control character, such as a tab or a line end: tables "
                "have plain text"
            )
    try:
        msgspec.convert(msgspec.to_builtins((about, columns)), tuple[About, Columns])
        msgspec.convert(facts, Versions)
    except msgspec.ValidationError as error:
        raise UserError(f"{about.attack or about.defense} cannot be stored: {error}") from None
    return PlannedCell(id=identity(facts), facts=facts, about=about, columns=columns)
