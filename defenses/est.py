"""EST: the embedding-shifted triplet, the defense of AdvRank (ECCV 2020).

Every image x of the batch is perturbed by PGD so that its embedding moves as far as possible:

    minimise over x~  -d(f(x~), f(x))

and the model learns by the triplet loss on triplets that are mined on the embeddings f(x~).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmlbench.attacks.engine.objective import RowWise
from dmlbench.common.lazy import torch
from dmlbench.core.papers import ADVRANK
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

FIRST_OFFSET = 1e-7  # at the start the distance is zero, and its gradient with it


@dataclass(frozen=True)
class ShiftObjective(RowWise):
    """-d(e, origin) of single images; ``origin`` (T, 1, D) are their clean embeddings."""

    metric: Metric
    origin: torch.Tensor

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (T,) and gradients (T, 1, D)."""
        origin = self.origin + FIRST_OFFSET if step == 0 else self.origin
        return -rowwise(e, origin, self.metric)[:, 0], -rowwise_gradient(e, origin, self.metric)


@DEFENSES.register
@dataclass(frozen=True, kw_only=True)
class EmbeddingShiftedTriplet(AdversarialDefense):
    """EST[sampler]."""

    card = Card("est", "Embedding-Shifted Triplet: each image far from itself", ADVRANK)

    sampler: str = parameter("random", "triplet sampler", choices=SAMPLER_NAMES)

    @property
    def label(self) -> str:
        """``EST[R]``."""
        return f"EST[{INITIAL[self.sampler]}]"

    def step(self, model: EmbeddingModel, batch: Batch, state: State) -> StepOutput:
        """Perturb the batch, mine triplets on the result, and take the triplet loss on them."""
        objective = ShiftObjective(model.metric, batch.embeddings[batch.share, None])
        perturbed = self.perturb(model, batch.images[batch.share, None], objective)
        e = batch.gather(model(perturbed.images[:, 0]))
        triplets = self.mine(self.sampler, batch, model.metric, e.detach())
        return self.triplet_step(batch, triplets, e[triplets.stack()], model.metric, perturbed)
