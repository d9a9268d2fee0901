"""The complete description of one training run. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dmlbench.common.errors import UserError
from dmlbench.common.hashing import identity
from dmlbench.common.lazy import np
from dmlbench.core import spec
from dmlbench.core.protocol import Recipe
from dmlbench.core.reference import source_facts
from dmlbench.defenses.base import Defense
from dmlbench.models.base import Model

if TYPE_CHECKING:
    import numpy.typing as npt

    Index = npt.NDArray[np.int64]

TRAINING_VERSION = 1  # is raised when a change of the trainer changes the weights


@dataclass(frozen=True)
class Training:
    """All that decides the weights of a model.

    Attributes:
        dataset: canonical spec of the data set. It is for people; only the digest is hashed.
        digest: digest of the content of the data.
        model: the network.
        defense: the method of training; no field is ``auto``.
        recipe: the training hyper-parameters.
        seed: of the initial weights, the batches and the mining of triplets.
        spelling: the defense as a user would write it. It is for people; the fields are hashed.
        recipe_changes: values of ``recipe`` that differ from the data set's card, for people.
        name: the defense's label, with what tells it apart in its run; empty: the label.
    """

    dataset: str
    digest: str
    model: Model
    defense: Defense
    recipe: Recipe
    seed: int
    spelling: str = ""
    recipe_changes: str = ""
    name: str = ""

    @property
    def shown(self) -> str:
        """Its name in progress and messages."""
        return self.name or self.defense.label

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The facts (JSON types) whose hash is the identity of the training run."""
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
        """The identity of the training run: 16 hex digits."""
        return identity(self.facts)


def anchors(labels: Index) -> Index:
    """Return the positions of images whose class has at least one other image."""
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return np.flatnonzero(sizes[inverse] > 1)


def small_batch(anchors: int) -> int:
    """Pairs in a batch of a train split with so few anchors: an epoch has four batches then."""
    return max(2, anchors // 4)


def check_pairs(pairs: int, labels: Index) -> None:
    """UserError if a train split has no triplets, or fewer pairs than a batch.

    Args:
        pairs: pairs of images in a batch.
        labels: (N,) of the train split. Images that are alone in their class are not trained on.
    """
    found = anchors(labels)
    if not len(found):
        raise UserError(
            "the data set has no images to train on: give it some (from_arrays: train=, folder: "
            "root= or train_list=)"
        )
    if len(np.unique(labels[found])) == 1:
        raise UserError(
            "only one class of the train split has two images or more, so there is no image of "
            "another class to learn from: give a second class two images"
        )
    if len(found) < pairs:
        raise UserError(
            f"a batch of {pairs} pairs is larger than the train split, "
            f"which has {len(found)} images with a partner in their class: name a smaller one "
            f"(--recipe pairs={small_batch(len(found))})"
        )
