"""EST: the embedding-shifted triplet, the defense of AdvRank (ECCV 2020).

Every image x of the batch is perturbed by PGD so that its embedding moves as far as possible:

    minimise over x~  -d(f(x~), f(x))

and the model learns by the triplet loss on triplets that are mined on the embeddings f(x~). Other
losses (``loss``) are taken on f(x~) as ``none`` takes them on f(x).

``variant=robrank`` does what RobRank's code does (``est_training_step`` in defenses/est.py):

- Its first step is another one (``ShiftDefense``).
- It embeds the clean batch in train mode too. Where batch norm is not frozen, the running
  statistics so become those of clean and perturbed images in turn.

RobRank freezes the batch norm of its 224x224 networks under every defense but EST. Its rows on CUB,
Cars and SOP are therefore ``--defense est:variant=robrank --model resnet18:freeze_bn=false``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmlbench.common.lazy import torch
from dmlbench.core.papers import ADVRANK
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.defenses import losses
from dmlbench.defenses.base import DEFENSES, SAMPLER_NAMES, Batch, State, StepOutput
from dmlbench.defenses.by_loss import LossDefense
from dmlbench.defenses.shift import ROBRANK_CODE, ShiftDefense

if TYPE_CHECKING:
    from dmlbench.compute.embedding import EmbeddingModel


@DEFENSES.register
@dataclass(frozen=True, kw_only=True)
class EmbeddingShiftedTriplet(LossDefense, ShiftDefense):
    """EST[sampler]."""

    card = Card("est", "Embedding-Shifted Triplet: each image far from itself", ADVRANK)

    sampler: str = parameter("random", "triplet sampler", choices=SAMPLER_NAMES)
    loss: str = parameter(losses.TRIPLET, losses.HELP, choices=losses.LOSSES, late=True)

    @property
    def label(self) -> str:
        """``EST[R]``; ``EST[contrastive]`` with another loss."""
        return self.named("EST", losses.notation(self.loss, self.sampler))

    def step(self, model: EmbeddingModel, batch: Batch, state: State) -> StepOutput:
        """Perturb the batch, mine triplets on the result, and take the loss on them."""
        images = batch.images[batch.share]
        if self.variant == ROBRANK_CODE and not model.same_in_training:
            with torch.no_grad():
                model(images)
        first = self.first_offset(batch, len(batch.images))[batch.share]
        origin = batch.embeddings[batch.share, None]
        perturbed = self.shift(model, images[:, None], origin, first)
        e = batch.gather(model(perturbed.images[:, 0]))
        whole = self.mine_whole(self.sampler, batch, model.metric, e.detach())
        return self.loss_step(batch, whole, e, model.metric, losses.mined(self.loss), perturbed)
