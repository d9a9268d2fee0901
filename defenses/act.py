"""ACT: the anti-collapse triplet, the defense of RobRank (TPAMI 2024).

The anchor stays clean. PGD pulls the positive and the negative together:

    minimise over p~, n~  d(f(p~), f(n~))

and the model learns by the triplet loss on (a, p~, n~) to keep them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmlbench.attacks.engine.objective import RowWise
from dmlbench.common.lazy import torch
from dmlbench.core.papers import ROBRANK
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.defenses.base import (
    DEFENSES,
    SAMPLER_NAMES,
    AdversarialDefense,
    Batch,
    State,
    StepOutput,
)
from dmlbench.defenses.samplers import INITIAL
from dmlbench.metrics.distance import Metric, rowwise, rowwise_gradient

if TYPE_CHECKING:
    from dmlbench.compute.embedding import EmbeddingModel


@dataclass(frozen=True)
class CollapseObjective(RowWise):
    """d(p, n) of pairs of a positive and a negative, embedded as (T, 2, D)."""

    metric: Metric

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (T,) and gradients (T, 2, D)."""
        p, n = e[:, 0], e[:, 1]
        toward_n = rowwise_gradient(p, n, self.metric)
        toward_p = rowwise_gradient(n, p, self.metric)
        return rowwise(p, n, self.metric), torch.stack([toward_n, toward_p], dim=1)


@DEFENSES.register
@dataclass(frozen=True, kw_only=True)
class AntiCollapseTriplet(AdversarialDefense):
    """ACT[sampler]."""

    card = Card("act", "Anti-Collapse Triplet: positive and negative pulled together", ROBRANK)

    sampler: str = parameter("random", "triplet sampler", choices=SAMPLER_NAMES)

    @property
    def label(self) -> str:
        """``ACT[R]``."""
        return f"ACT[{INITIAL[self.sampler]}]"

    def step(self, model: EmbeddingModel, batch: Batch, state: State) -> StepOutput:
        """Mine clean triplets, pull positives and negatives together, take the triplet loss."""
        triplets = self.mine(self.sampler, batch, model.metric)
        if not len(triplets):
            return StepOutput.empty(batch)
        images = batch.images[triplets.stack()]
        perturbed = self.perturb(model, images[:, 1:], CollapseObjective(model.metric))
        adversarial = torch.cat([images[:, :1], perturbed.images], dim=1)
        e = model(adversarial.flatten(0, 1)).view(len(triplets), 3, -1)
        return self.triplet_step(batch, triplets, e, model.metric, perturbed)
