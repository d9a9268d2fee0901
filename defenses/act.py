"""ACT: the anti-collapse triplet, the defense of RobRank (TPAMI 2024).

The anchor stays clean. PGD pulls the positive and the negative together:

    minimise over p~, n~  d(f(p~), f(n~))

and the model learns by the triplet loss on (a, p~, n~) to keep them apart. Those other losses
that are defined on given triplets (``loss``) are taken on the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmlbench.attacks.engine.objective import RowWise
from dmlbench.common.lazy import torch
from dmlbench.core.papers import ROBRANK
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.defenses import losses
from dmlbench.defenses.base import (
    DEFENSES,
    SAMPLER_NAMES,
    AdversarialDefense,
    Batch,
    State,
    StepOutput,
)
from dmlbench.defenses.by_loss import LossDefense
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
class AntiCollapseTriplet(LossDefense, AdversarialDefense):
    """ACT[sampler]."""

    card = Card("act", "Anti-Collapse Triplet: positive and negative pulled together", ROBRANK)

    sampler: str = parameter("random", "triplet sampler", choices=SAMPLER_NAMES)
    loss: str = parameter(losses.TRIPLET, losses.HELP, choices=losses.OF_TRIPLETS, late=True)

    always_mined = True

    @property
    def label(self) -> str:
        """``ACT[R]``; ``ACT[contrastive, R]`` with another loss."""
        return f"ACT[{losses.notation(self.loss, self.sampler, self.always_mined)}]"

    def step(self, model: EmbeddingModel, batch: Batch, state: State) -> StepOutput:
        """Mine clean triplets, pull positives and negatives together, take the loss."""
        whole = self.mine_whole(self.sampler, batch, model.metric)
        triplets = whole.share(batch.world)
        if not len(triplets):
            return StepOutput.empty(batch)
        images = batch.images[triplets.stack()]
        perturbed = self.perturb(model, images[:, 1:], CollapseObjective(model.metric))
        adversarial = torch.cat([images[:, :1], perturbed.images], dim=1)
        e = model(adversarial.flatten(0, 1)).view(len(triplets), 3, -1)
        if batch.companion is None:
            return self.triplet_step(batch, triplets, e, model.metric, perturbed)
        # no mean over triplets: every process takes the loss on all of them
        e = batch.world.gather(e, len(whole))
        at = torch.arange(e.shape[0] * 3, device=e.device).view(-1, 3)
        labels = batch.labels[whole.stack()].flatten()
        loss = batch.companion(e.flatten(0, 1), labels, at.unbind(1))
        return self.triplet_step(batch, whole, e, model.metric, perturbed, loss)
