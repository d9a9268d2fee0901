"""Defenses that train with another loss than the triplet loss too: the key ``loss``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Self

from dmlbench.defenses import losses
from dmlbench.defenses.base import Defense

if TYPE_CHECKING:
    from torch import nn

    from dmlbench.core.protocol import TrainingThreat
    from dmlbench.metrics.distance import Metric


class LossDefense(Defense):
    """A defense with the keys ``sampler`` and ``loss``, which it declares itself."""

    always_mined: ClassVar[bool] = False  # True: every loss is taken on mined triplets

    sampler: str
    loss: str

    def resolve(self, threat: TrainingThreat, metric: Metric) -> Self:
        """Fill in what is ``auto``; the margin only for the triplet loss, which alone reads it.

        Raises:
            UserError: a margin or a sampler is given for a loss that does not read it.
        """
        losses.check(self.card.name, self.loss, self.margin, self.sampler, self.always_mined)
        filled = super().resolve(threat, metric)
        return filled if self.loss == losses.TRIPLET else replace(filled, margin=None)

    def companion(self, classes: int, dim: int, metric: Metric) -> nn.Module | None:
        """The loss module; None for the triplet loss. Proxy-anchor learns its proxies."""
        return losses.build(self.loss, classes, dim, metric)
