"""No defense: the triplet loss, or another loss, on the clean batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dmlbench.core.papers import Paper
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.defenses import losses
from dmlbench.defenses.base import DEFENSES, SAMPLER_NAMES, Batch, State, StepOutput
from dmlbench.defenses.by_loss import LossDefense

if TYPE_CHECKING:
    from dmlbench.compute.embedding import EmbeddingModel

FACENET = Paper(
    key="schroff2015facenet",
    title="FaceNet: A Unified Embedding for Face Recognition and Clustering",
    authors="Schroff, Florian and Kalenichenko, Dmitry and Philbin, James",
    venue="CVPR",
    year=2015,
    url="https://arxiv.org/abs/1503.03832",
)


@DEFENSES.register
@dataclass(frozen=True, kw_only=True)
class NoDefense(LossDefense):
    """Plain deep metric learning."""

    card = Card("none", "no defense: the triplet loss (or another) on the clean batch", FACENET)

    sampler: str = parameter("random", "triplet sampler", choices=SAMPLER_NAMES)
    loss: str = parameter(losses.TRIPLET, losses.HELP, choices=losses.LOSSES)

    @property
    def label(self) -> str:
        """``N/A[R]``; with another loss ``N/A[contrastive]`` or ``N/A[margin, D]``."""
        return f"N/A[{losses.notation(self.loss, self.sampler)}]"

    def step(self, model: EmbeddingModel, batch: Batch, state: State) -> StepOutput:
        """Embed the batch, mine triplets on its embeddings, and take the loss on them.

        Where the network embeds differently in train mode (as with batch norm), triplets are mined
        on embeddings in eval mode, which costs a forward pass more.
        """
        e = batch.gather(model(batch.images[batch.share]))
        if model.same_in_training:
            batch = replace(batch, embed=e.detach)
        whole = self.mine_whole(self.sampler, batch, model.metric)
        return self.loss_step(batch, whole, e, model.metric, losses.mined(self.loss))
