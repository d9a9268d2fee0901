"""TBC: three-body collapse, from RobRank's code.

PGD pulls the three images of a triplet together:

    minimise over a~, p~, n~  d(f(p~), f(n~)) + d(f(a~), f(p~)) + d(f(a~), f(n~))

and the model learns by the triplet loss on (a~, p~, n~).

Source: ``tbc_training_step`` and ``PositiveNegativePerplexing.tribodycollapse`` in
robrank/defenses/pnp.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from dmlbench.attacks.engine.objective import Objective, RowWise
from dmlbench.common.lazy import torch
from dmlbench.core.papers import ROBRANK
from dmlbench.core.registry import Card
from dmlbench.defenses.base import DEFENSES, Batch
from dmlbench.defenses.perturbed_triplets import PerturbedTriplets
from dmlbench.metrics.distance import Metric, rowwise, rowwise_gradient


@dataclass(frozen=True)
class TogetherObjective(RowWise):
    """The sum of the three distances within each triplet."""

    metric: Metric

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (T,) and gradients (T, 3, D) for embeddings (T, 3, D) of a, p, n."""
        following, preceding = e.roll(-1, dims=1), e.roll(1, dims=1)
        loss = rowwise(e, following, self.metric).sum(1)
        return loss, rowwise_gradient(e, following, self.metric) + rowwise_gradient(
            e, preceding, self.metric
        )


@DEFENSES.register
@dataclass(frozen=True, kw_only=True)
class ThreeBodyCollapse(PerturbedTriplets):
    """TBC[sampler]."""

    card = Card("tbc", "Three-Body Collapse: all images of a triplet pulled together", ROBRANK)

    def objective(self, metric: Metric, batch: Batch) -> Objective:
        """The three distances."""
        return TogetherObjective(metric)
