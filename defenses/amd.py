"""AMD: the defense of Madry et al. (ICLR 2018) for the triplet loss, from RobRank's code.

PGD makes each triplet as hard as it can, without a limit:

    minimise over a~, p~, n~  d(f(a~), f(n~)) - d(f(a~), f(p~))

and the model learns by the triplet loss on (a~, p~, n~). Training on such triplets tends to
collapse; HM stops at a destination hardness instead.

Source: ``amd_training_step`` in robrank/defenses/amd.py and
``PositiveNegativePerplexing.minmaxtriplet`` in robrank/defenses/pnp.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from dmlbench.attacks.engine.objective import Objective, RowWise
from dmlbench.common.lazy import torch
from dmlbench.core.papers import ROBRANK
from dmlbench.core.registry import Card
from dmlbench.defenses.base import DEFENSES, Batch, hardness_and_gradient
from dmlbench.defenses.perturbed_triplets import PerturbedTriplets
from dmlbench.defenses.samplers import own_positive_offset
from dmlbench.metrics.distance import Metric


@dataclass(frozen=True)
class HarderObjective(RowWise):
    """-H = d(a, n) - d(a, p) of triplets; ``offset`` as in ``hardness_and_gradient``."""

    metric: Metric
    offset: float = 0.0

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (T,) and gradients (T, 3, D) for embeddings (T, 3, D) of a, p, n."""
        h, dh = hardness_and_gradient(e, self.metric, self.offset)
        return -h, -dh


@DEFENSES.register
@dataclass(frozen=True, kw_only=True)
class MadryTriplet(PerturbedTriplets):
    """AMD[sampler]."""

    card = Card("amd", "Madry's defense: triplets as hard as PGD can make them", ROBRANK)

    def objective(self, metric: Metric, batch: Batch) -> Objective:
        """The hardness, to be raised."""
        return HarderObjective(metric, own_positive_offset(self.sampler))
