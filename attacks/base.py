"""The base class of attacks: it owns validation, the threat model and verification.

A subclass writes its mathematics only: ``goal`` chooses the targets of a batch and returns an
objective (loss and dL/de a sample) that can also say what became of each sample.
"""

from __future__ import annotations

import abc
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, TypeVar, final

from dmlbench import spec
from dmlbench.attacks.pgd import PGD, Objective, Perturbed
from dmlbench.errors import CellError, UserError
from dmlbench.lazy import torch
from dmlbench.metrics.distance import Metric
from dmlbench.registry import Component, Registry
from dmlbench.spec import parameter

if TYPE_CHECKING:
    from torch import nn

    from dmlbench.recipe import Threat

ATTACKS: Registry[Attack] = Registry("attack", "dmlbench.attacks")


@dataclass(frozen=True)
class Column:
    """A number that an attack reports, as a mean over queries.

    Attributes:
        name: its heading, as in the papers' tables.
        unit: ``%`` for ranks and recalls in percent, ``""`` for similarities and distances.
        better: which direction is better for the defender.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"]


@dataclass(frozen=True)
class Gallery:
    """The clean test split as embeddings: what is searched.

    Attributes:
        embeddings: (N, D), unit length for metrics N and C.
        labels: (N,) int64.
        metric: N, E or C.
    """

    embeddings: torch.Tensor
    labels: torch.Tensor
    metric: Metric

    def __post_init__(self) -> None:
        n = len(self.embeddings)
        if self.embeddings.ndim != 2 or self.labels.shape != (n,):
            raise UserError(
                f"a gallery needs (N, D) embeddings and N labels, got "
                f"{tuple(self.embeddings.shape)} and {tuple(self.labels.shape)}"
            )
        if not self.embeddings.isfinite().all():
            raise CellError("the model's clean embeddings are not finite")

    def __len__(self) -> int:
        return len(self.labels)


GoalT = TypeVar("GoalT", bound="RowWise")


@dataclass(frozen=True)
class RowWise:
    """Mixin of objectives whose tensor fields have one row a sample."""

    def take(self: GoalT, rows: torch.Tensor) -> GoalT:
        """The same objective for the samples ``rows`` only."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        kept = {k: v[rows] for k, v in fields.items() if isinstance(v, torch.Tensor)}
        return dataclasses.replace(self, **kept)


class Goal(Objective, Protocol):
    """An objective that can say what became of each sample."""

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        """Column name -> (B,) values for the embeddings ``e`` (B, D)."""
        ...


@dataclass(frozen=True)
class Attacked:
    """A batch after an attack: per-query outcomes (column -> (B,)) and the images."""

    outcomes: dict[str, torch.Tensor]
    perturbed: Perturbed


@dataclass(frozen=True, kw_only=True)
class Attack(Component, abc.ABC):
    """A white-box L-infinity attack by PGD. Fields left ``auto`` come from the data set's card."""

    columns: ClassVar[tuple[Column, ...]]

    eps: float | None = parameter(
        None, "radius of the L-infinity ball", at_least=0, at_most=1, pixels=True
    )
    alpha: float | None = parameter(
        None, "size of a step; eps where steps=1 (FGSM)", above=0, at_most=1, pixels=True
    )
    steps: int | None = parameter(None, "PGD steps", at_least=1)

    @abc.abstractmethod
    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> Goal:
        """Targets and loss for the test images at ``index`` (B,), from (seed, index) alone."""

    @final
    def resolve(self, threat: Threat) -> Attack:
        """The attack with every ``auto`` field filled in from ``threat``."""
        steps = self.steps or threat.steps
        eps = threat.eps if self.eps is None else self.eps
        alpha = self.alpha or (eps or threat.alpha if steps == 1 else threat.alpha)
        return dataclasses.replace(self, eps=eps, alpha=alpha, steps=steps)

    @final
    def run(
        self,
        model: nn.Module,
        images: torch.Tensor,
        index: torch.Tensor,
        gallery: Gallery,
        *,
        seed: int,
        active_set: bool = True,
    ) -> Attacked:
        """Attack a batch of test images.

        Args:
            model: an embedding model in eval mode with frozen parameters.
            images: (B, C, H, W) clean images in [0, 1].
            index: (B,) their positions in the test split, which is the gallery.
            gallery: clean embeddings of the whole test split.
            seed: of the cell; decides the targets together with ``index``.
            active_set: let saturated samples leave the batch (changes no result).

        Raises:
            CellError: images outside [0, 1] or NaN, a model that returns the wrong shape or
                NaN, a gallery too small for the targets, a perturbation outside the ball.
        """
        from dmlbench.embedding import embed

        spec.check(self)
        assert self.eps is not None
        assert self.alpha is not None
        assert self.steps is not None
        if not bool(((images >= 0) & (images <= 1)).all()):
            raise CellError("images must be finite and in [0, 1]")
        if len(index) != len(images):
            raise CellError(f"{len(images)} images need as many indices, got {len(index)}")
        goal = self.goal(gallery, index, seed)
        pgd = PGD(self.eps, self.alpha, self.steps, active_set)
        perturbed = pgd.run(lambda x: embed(model, x), images, goal)
        with torch.no_grad():
            outcomes = goal.outcome(embed(model, perturbed.images))
        for name, value in outcomes.items():
            if value.shape != index.shape or not value.isfinite().all():
                raise CellError(f"{self.card.name}: outcome {name} must be {len(index)} numbers")
        return Attacked(outcomes, perturbed)
