"""The base of the defenses that move each image away from itself: EST, REST and SES.

They minimise -d(f(x~), f(x)) over x~ by PGD. At the start x~ is x, the distance is zero and so is
its gradient: something must decide the first step.

- ``variant=default``: 1e-7 is added to each component of f(x) in the first step.
- ``variant=robrank``: RobRank's code (``AdvRank.embShift`` in attacks/advrank.py). It adds -1e-7, 0
  or 1e-7 at random, and torch's pairwise_distance, which it calls, adds 1e-6 to f(x~) - f(x). The
  1e-6 outweighs the jitter and has the opposite sign of the default, so this first step goes the
  opposite way.

Its attack ES in ``ers`` goes the way of RobRank's training. A model that was trained with one
of the two first steps withstands that one best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmlbench.attacks.engine.objective import RowWise
from dmlbench.attacks.engine.optimizer import Perturbed
from dmlbench.common.lazy import torch
from dmlbench.core.spec import parameter
from dmlbench.defenses.base import AdversarialDefense, Batch
from dmlbench.metrics.distance import Metric, rowwise, rowwise_gradient

if TYPE_CHECKING:
    from dmlbench.compute.embedding import EmbeddingModel

DEFAULT, ROBRANK_CODE = "default", "robrank"
NUDGE = 1e-7  # added to the clean embeddings in the first step
ROBRANK_GAP = 1e-6  # added to all differences by torch's pairwise_distance


@dataclass(frozen=True)
class ShiftObjective(RowWise):
    """-d(e, origin) summed over groups of k images; ``origin`` (T, k, D) are clean embeddings.

    Attributes:
        first: (T, k, D) what is added to ``origin`` in the first step, where the distance is zero.
        gap: what is added to each component of e - origin; not read under the metric C.
    """

    metric: Metric
    origin: torch.Tensor
    first: torch.Tensor
    gap: float = 0.0

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (T,) and gradients (T, k, D)."""
        origin = self.origin + self.first if step == 0 else self.origin
        if self.gap and self.metric != "C":
            e, origin = e - origin, torch.full_like(origin, -self.gap)
        return -rowwise(e, origin, self.metric).sum(1), -rowwise_gradient(e, origin, self.metric)


@dataclass(frozen=True, kw_only=True)
class ShiftDefense(AdversarialDefense):
    """A defense whose adversary is ES: it moves embeddings away from the clean ones."""

    variant: str = parameter(
        DEFAULT,
        "robrank: the step of RobRank's code, whose first PGD step goes the other way",
        choices=(DEFAULT, ROBRANK_CODE),
        late=True,
    )

    def named(self, name: str, inside: str) -> str:
        """``EST[R]``, and ``EST[R, RobRank]`` for RobRank's variant."""
        return f"{name}[{inside}{', RobRank' if self.variant == ROBRANK_CODE else ''}]"

    def first_offset(self, batch: Batch, rows: int, images: int = 1) -> torch.Tensor:
        """(rows, images, D) what is added to the clean embeddings in the first step.

        All processes must ask for the rows of all of them: they draw the same numbers.
        """
        like = batch.embeddings
        shape = (rows, images, like.shape[1])
        if self.variant == DEFAULT:
            return like.new_full(shape, NUDGE)
        jitter = torch.randint(-1, 2, shape, generator=batch.generator, device=like.device)
        return NUDGE * jitter.to(like)

    def shift(
        self, model: EmbeddingModel, images: torch.Tensor, origin: torch.Tensor, first: torch.Tensor
    ) -> Perturbed:
        """Move the embeddings of groups of images (T, k, C, H, W) from ``origin`` (T, k, D)."""
        gap = ROBRANK_GAP if self.variant == ROBRANK_CODE else 0.0
        return self.perturb(model, images, ShiftObjective(model.metric, origin, first, gap))
