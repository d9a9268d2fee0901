"""Fast adversarial training: one PGD step from a random start (Wong et al., ICLR 2020).

It is ACT with eta = 1. PGD begins at noise that is uniform in the ball, takes one step of 1.25 eps
that pulls the positive and the negative together, and is projected onto the ball. The model learns
by the triplet loss on (a, p~, n~). A training step costs two passes instead of eta + 1. One-step
training may overfit to one step: look at an attack of many steps.

The paper steps along the gradient of the loss of a classifier. That of the triplet loss, as in AMD,
made LeNet collapse on Fashion-MNIST at eps 77/255 within 60 steps; ACT's objective did not.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from dmlbench.common.lazy import torch
from dmlbench.core.papers import Paper
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.defenses.act import CollapseObjective
from dmlbench.defenses.base import (
    DEFENSES,
    SAMPLER_NAMES,
    AdversarialDefense,
    Batch,
    State,
    StepOutput,
)
from dmlbench.defenses.samplers import INITIAL
from dmlbench.metrics.distance import Metric

if TYPE_CHECKING:
    from dmlbench.compute.embedding import EmbeddingModel
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
class FastTriplet(AdversarialDefense):
    """FAST[sampler]."""

    card = Card("fast", "fast adversarial training: ACT in one step from a random start", FAST)

    sampler: str = parameter("random", "triplet sampler", choices=SAMPLER_NAMES)
    eta: int = parameter(1, "PGD steps that perturb a training batch", at_least=1)

    @property
    def label(self) -> str:
        """``FAST[R]``."""
        return f"FAST[{INITIAL[self.sampler]}]"

    def resolve(self, threat: TrainingThreat, metric: Metric) -> Self:
        """Fill in what is ``auto``; a single step is 1.25 eps long."""
        filled = super().resolve(threat, metric)
        if self.alpha is not None or self.eta != 1:
            return filled
        assert filled.eps is not None
        return dataclasses.replace(filled, alpha=min(1.0, STEP * filled.eps))

    def step(self, model: EmbeddingModel, batch: Batch, state: State) -> StepOutput:
        """Mine clean triplets, pull positives and negatives together, take the triplet loss."""
        whole = self.mine_whole(self.sampler, batch, model.metric)
        if not len(whole):
            return StepOutput.empty(batch)
        triplets, own = whole.share(batch.world), batch.world.share(len(whole))
        images = batch.images[whole.stack()]
        start = self.random_start(images[:, 1:], batch)[own]
        images, objective = images[own], CollapseObjective(model.metric)
        perturbed = self.perturb(model, images[:, 1:], objective, start=start)
        adversarial = torch.cat([images[:, :1], perturbed.images], dim=1)
        e = model(adversarial.flatten(0, 1)).view(len(triplets), 3, -1)
        return self.triplet_step(batch, triplets, e, model.metric, perturbed)
