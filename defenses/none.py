"""No defense: the triplet loss, or another loss, on the clean batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from dmlbench.core.papers import Paper
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.defenses import losses
from dmlbench.defenses.base import DEFENSES, SAMPLER_NAMES, Batch, Defense, State, StepOutput

if TYPE_CHECKING:
    from torch import nn

    from dmlbench.compute.embedding import EmbeddingModel
    from dmlbench.core.protocol import TrainingThreat
    from dmlbench.metrics.distance import Metric

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
class NoDefense(Defense):
    """Plain deep metric learning."""

    card = Card("none", "no defense: the triplet loss (or another) on the clean batch", FACENET)

    sampler: str = parameter("random", "triplet sampler", choices=SAMPLER_NAMES)
    loss: str = parameter(losses.TRIPLET, losses.HELP, choices=losses.LOSSES)

    @property
    def label(self) -> str:
        """``N/A[R]``; with another loss ``N/A[contrastive]`` or ``N/A[margin, D]``."""
        return f"N/A[{losses.notation(self.loss, self.sampler)}]"

    def resolve(self, threat: TrainingThreat, metric: Metric) -> Self:
        """Fill in the margin, which only the triplet loss reads.

        Raises:
            UserError: a margin or a sampler is given for a loss that does not read it.
        """
        losses.check(self.card.name, self.loss, self.margin, self.sampler)
        filled = super().resolve(threat, metric)
        return filled if self.loss == losses.TRIPLET else replace(filled, margin=None)

    def companion(self, classes: int, dim: int, metric: Metric) -> nn.Module | None:
        """The loss module; None for the triplet loss. Proxy-anchor learns its proxies."""
        return losses.build(self.loss, classes, dim, metric)

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
