"""No defense: the triplet loss, or another loss, on the clean batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from dmlbench.common.errors import UserError
from dmlbench.core.papers import Paper
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.defenses.base import (
    DEFENSES,
    SAMPLER_NAMES,
    Batch,
    Defense,
    State,
    StepOutput,
)
from dmlbench.defenses.losses import LOSSES, build
from dmlbench.defenses.samplers import INITIAL

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

TRIPLET, MARGIN_LOSS = "triplet", "margin"  # these two losses need mined triplets


@DEFENSES.register
@dataclass(frozen=True, kw_only=True)
class NoDefense(Defense):
    """Plain deep metric learning."""

    card = Card("none", "no defense: the triplet loss (or another) on the clean batch", FACENET)

    sampler: str = parameter("random", "triplet sampler", choices=SAMPLER_NAMES)
    loss: str = parameter(
        TRIPLET,
        "the loss; all but triplet are pytorch-metric-learning's, with its defaults",
        choices=(TRIPLET, *LOSSES),
    )

    @property
    def label(self) -> str:
        """``N/A[R]``; with another loss ``N/A[contrastive]`` or ``N/A[margin, D]``."""
        if self.loss == TRIPLET:
            return f"N/A[{INITIAL[self.sampler]}]"
        mined = f", {INITIAL[self.sampler]}" if self.loss == MARGIN_LOSS else ""
        return f"N/A[{self.loss}{mined}]"

    def resolve(self, threat: TrainingThreat, metric: Metric) -> Self:
        """Fill in the margin, which only the triplet loss reads.

        Raises:
            UserError: a margin or a sampler is given for a loss that does not read it.
        """
        if self.loss == TRIPLET:
            return super().resolve(threat, metric)
        if self.margin is not None:
            raise UserError(f"none: margin is the triplet loss's; loss={self.loss} has its own")
        if self.loss != MARGIN_LOSS and self.sampler != "random":
            raise UserError(f"none: loss={self.loss} reads the whole batch and takes no sampler")
        return self

    def companion(self, classes: int, dim: int, metric: Metric) -> nn.Module | None:
        """The loss module; None for the triplet loss. Proxy-anchor learns its proxies."""
        return None if self.loss == TRIPLET else build(self.loss, classes, dim, metric)

    def step(self, model: EmbeddingModel, batch: Batch, state: State) -> StepOutput:
        """Embed the batch, mine triplets on its embeddings, and take the loss on them.

        Where the network embeds differently in train mode (as with batch norm), triplets are mined
        on embeddings in eval mode, which costs a forward pass more.
        """
        e = batch.gather(model(batch.images[batch.share]))
        if model.same_in_training:
            batch = replace(batch, embed=e.detach)
        whole = self.mine_whole(self.sampler, batch, model.metric)
        if batch.companion is None or not len(whole):
            triplets = whole.share(batch.world)
            return self.triplet_step(batch, triplets, e[triplets.stack()], model.metric)
        # no mean over triplets: every process takes the loss on the whole batch
        mined = (whole.stack().unbind(1),) if self.loss == MARGIN_LOSS else ()
        loss = batch.companion(e, batch.labels, *mined)
        return self.triplet_step(batch, whole, e[whole.stack()], model.metric, loss=loss)
