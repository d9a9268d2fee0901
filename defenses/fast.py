"""Fast adversarial training: one PGD step from a random start (Wong et al., ICLR 2020).

It is AMD, Madry's defense for triplets, with eta = 1: PGD begins at noise that is uniform in the
ball, takes one step of 1.25 eps towards a higher hardness, and is projected onto the ball. The
model learns by the triplet loss on (a~, p~, n~). A training step costs two passes instead of
eta + 1. One-step training may overfit to one step: look at an attack of many steps.

The paper steps along the gradient of the loss of a classifier. Here it is that of the hardness, as
in AMD, so that triplets which the margin leaves without a loss are perturbed as well.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from dmlbench.core.papers import Paper
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.defenses.amd import MadryTriplet
from dmlbench.defenses.base import DEFENSES, Batch
from dmlbench.metrics.distance import Metric

if TYPE_CHECKING:
    import torch

    from dmlbench.core.protocol import TrainingThreat

FAST = Paper(
    key="wong2020fast",
    title="Fast is better than free: Revisiting adversarial training",
    authors="Wong, Eric and Rice, Leslie and Kolter, J. Zico",
    venue="ICLR",
    year=2020,
    url="https://arxiv.org/abs/2001.03994",
)
STEP = 1.25  # the length of a step over eps


@DEFENSES.register
@dataclass(frozen=True, kw_only=True)
class FastTriplet(MadryTriplet):
    """FAST[sampler]."""

    card = Card("fast", "fast adversarial training: AMD in one step from a random start", FAST)

    eta: int = parameter(1, "PGD steps that perturb a training batch", at_least=1)

    def resolve(self, threat: TrainingThreat, metric: Metric) -> Self:
        """Fill in what is ``auto``; a single step is 1.25 eps long."""
        filled = super().resolve(threat, metric)
        if self.alpha is not None or self.eta != 1:
            return filled
        assert filled.eps is not None
        return dataclasses.replace(filled, alpha=min(1.0, STEP * filled.eps))

    def start(self, images: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Uniform noise in the ball."""
        return self.random_start(images, batch)
