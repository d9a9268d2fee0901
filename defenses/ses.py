"""SES: suppress the embedding shift, of the supplement of AdvRank (ECCV 2020).

Every image x of the batch is perturbed by PGD so that its embedding moves as far as possible (as in
EST), and the model learns by the triplet loss on the clean batch plus the mean distance that is
left:

    triplet loss + mean d(f(x~), f(x))

Source: ``ses_training_step`` in robrank/defenses/ses.py. Under the metric E that code compares a
normalised with an unnormalised embedding, which defines no distance: E is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from dmlbench.common.errors import UserError
from dmlbench.core.papers import ADVRANK
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.defenses.base import DEFENSES, SAMPLER_NAMES, Batch, State, StepOutput
from dmlbench.defenses.samplers import INITIAL
from dmlbench.defenses.shift import ShiftDefense
from dmlbench.metrics.distance import Metric, rowwise

if TYPE_CHECKING:
    from dmlbench.compute.embedding import EmbeddingModel
    from dmlbench.core.protocol import TrainingThreat


@DEFENSES.register
@dataclass(frozen=True, kw_only=True)
class SuppressedEmbeddingShift(ShiftDefense):
    """SES[sampler]."""

    card = Card("ses", "Suppressed Embedding Shift: perturbed images near the clean ones", ADVRANK)

    sampler: str = parameter("random", "triplet sampler", choices=SAMPLER_NAMES)

    @property
    def label(self) -> str:
        """``SES[R]``."""
        return self.named("SES", INITIAL[self.sampler])

    def resolve(self, threat: TrainingThreat, metric: Metric) -> Self:
        """Fill in what is ``auto``.

        Raises:
            UserError: the metric is E.
        """
        if metric == "E":
            raise UserError("ses is defined for the metrics N and C; E is none of them")
        return super().resolve(threat, metric)

    def step(self, model: EmbeddingModel, batch: Batch, state: State) -> StepOutput:
        """Shift each image, and take the triplet loss and the mean shift."""
        own, metric = batch.share, model.metric
        first = self.first_offset(batch, len(batch.images))[own]
        images = batch.images[own]
        perturbed = self.shift(model, images[:, None], batch.embeddings[own, None], first)
        clean = batch.gather(model(images))
        whole = self.mine_whole(self.sampler, batch, metric)
        step = self.loss_step(batch, whole, clean, metric, perturbed=perturbed)
        if step.loss is not None:
            moved = batch.gather(model(perturbed.images[:, 0]))
            step.loss = step.loss + rowwise(moved, clean, metric).mean()
        return step
