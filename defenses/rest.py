"""REST: EST with clean anchors ("revised EST"), from RobRank's code.

Triplets are mined on the clean batch. PGD moves each positive and each negative away from itself:

    minimise over p~, n~  -d(f(p~), f(p)) - d(f(n~), f(n))

and the model learns by the triplet loss on (a, p~, n~). Its author suspected perturbed anchors to
give gradients that mislead the training.

Source: ``rest_training_step`` in robrank/defenses/pnp.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmlbench.common.lazy import torch
from dmlbench.core.papers import ROBRANK
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.defenses.base import DEFENSES, SAMPLER_NAMES, Batch, State, StepOutput
from dmlbench.defenses.samplers import INITIAL
from dmlbench.defenses.shift import ShiftDefense

if TYPE_CHECKING:
    from dmlbench.compute.embedding import EmbeddingModel


@DEFENSES.register
@dataclass(frozen=True, kw_only=True)
class RevisedEmbeddingShiftedTriplet(ShiftDefense):
    """REST[sampler]."""

    card = Card("rest", "Revised EST: positives and negatives far from themselves", ROBRANK)

    sampler: str = parameter("random", "triplet sampler", choices=SAMPLER_NAMES)

    @property
    def label(self) -> str:
        """``REST[R]``."""
        return self.named("REST", INITIAL[self.sampler])

    def step(self, model: EmbeddingModel, batch: Batch, state: State) -> StepOutput:
        """Mine clean triplets, shift positives and negatives, take the triplet loss."""
        whole = self.mine_whole(self.sampler, batch, model.metric)
        if not len(whole):
            return StepOutput.empty(batch)
        triplets = whole.share(batch.world)
        first = self.first_offset(batch, len(whole), 2)[batch.world.share(len(whole))]
        chosen = triplets.stack()
        images, moved = batch.images[chosen], chosen[:, 1:]
        perturbed = self.shift(model, images[:, 1:], batch.embeddings[moved], first)
        adversarial = torch.cat([images[:, :1], perturbed.images], dim=1)
        e = model(adversarial.flatten(0, 1)).view(len(triplets), 3, -1)
        return self.triplet_step(batch, triplets, e, model.metric, perturbed)
