"""A training: all that decides the weights of a model, and its row in tables. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dmlbench.common.hashing import identity
from dmlbench.core import spec
from dmlbench.core.protocol import Recipe
from dmlbench.core.reference import source_facts
from dmlbench.defenses.base import Defense
from dmlbench.models.base import Model, shown_model

TRAINING_VERSION = 1  # raised when the engine changes what it computes


@dataclass(frozen=True)
class Training:
    """All that decides the weights of a model, resolved.

    Attributes:
        dataset: canonical spec of the data set (for people; the digest decides).
        digest: content digest of the data.
        model: the network.
        defense: how it is trained, no field ``auto``.
        recipe: for how long.
        seed: of initialisation, batches and mining.
        spelling: the defense as a user would write it (for people; the fields decide).
        recipe_changes: where ``recipe`` differs from the data set's own (for people).
    """

    dataset: str
    digest: str
    model: Model
    defense: Defense
    recipe: Recipe
    seed: int
    spelling: str = ""
    recipe_changes: str = ""

    @cached_property
    def facts(self) -> dict[str, Any]:
        """JSON-able identity facts."""
        return {
            "kind": "training",
            "training_version": TRAINING_VERSION,
            "data": self.digest,
            "model": self.model.facts | self.model.training_facts,
            "defense": self.defense.card.name,
            "defense_version": self.defense.card.version,
            "defense_values": spec.values(self.defense),
            **source_facts(self.defense, "defense_source"),
            "recipe": spec.values(self.recipe),
            "seed": self.seed,
        }

    @cached_property
    def id(self) -> str:
        """Identity of the training run."""
        return identity(self.facts)

    def about(self, precision: str) -> dict[str, Any]:
        """The row of the model in tables, before any suite (``analysis.records.MODEL``)."""
        return {
            "dataset": self.dataset,
            "model": shown_model(self.model),
            "distance": self.model.metric,
            "recipe": self.recipe_changes,
            "defense": self.spelling,
            "label": self.defense.label,
            "resolved": spec.shown(self.defense),
            "training_cost": self.defense.training_cost,
            "seed": self.seed,
            "precision": precision,
            "suite": "",
            "queries": "",
        }
