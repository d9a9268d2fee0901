"""ACAP: anti-collapse with anchor perplexing, from RobRank's code.

In each step of PGD a coin decides for the whole batch which of two losses is descended, over the
three images of each triplet:

    d(f(p~), f(n~))                          as ACT (the anchors stay where they are in this step)
    d(f(a~), f(n~)) - d(f(a~), f(p~))        as AMD

and the model learns by the triplet loss on (a~, p~, n~).

Source: ``acap_training_step`` and ``PositiveNegativePerplexing.anticolanchperplex`` in
robrank/defenses/pnp.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from dmlbench.attacks.engine.objective import Objective, RowWise
from dmlbench.common.lazy import torch
from dmlbench.core.papers import ROBRANK
from dmlbench.core.registry import Card
from dmlbench.defenses.act import CollapseObjective
from dmlbench.defenses.amd import HarderObjective
from dmlbench.defenses.base import DEFENSES, Batch
from dmlbench.defenses.perturbed_triplets import PerturbedTriplets
from dmlbench.defenses.samplers import own_positive_offset
from dmlbench.metrics.distance import Metric


@dataclass(frozen=True)
class CoinObjective(RowWise):
    """ACT's objective in the steps where ``collapse`` is true, AMD's in the others."""

    metric: Metric
    offset: float
    collapse: tuple[bool, ...]

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (T,) and gradients (T, 3, D) for embeddings (T, 3, D) of a, p, n."""
        if not self.collapse[step]:
            return HarderObjective(self.metric, self.offset).value_and_grad(e, step)
        loss, gradient = CollapseObjective(self.metric).value_and_grad(e[:, 1:], step)
        return loss, torch.cat([torch.zeros_like(e[:, :1]), gradient], dim=1)


@DEFENSES.register
@dataclass(frozen=True, kw_only=True)
class AnchorPerplexing(PerturbedTriplets):
    """ACAP[sampler]."""

    card = Card("acap", "Anti-Collapse, Anchor Perplexing: ACT or AMD, by a coin a step", ROBRANK)

    def objective(self, metric: Metric, batch: Batch) -> Objective:
        """The two losses, and the coins of the steps."""
        assert self.eta is not None
        generator = batch.generator
        coins = torch.rand(self.eta, generator=generator, device=generator.device) > 0.5
        return CoinObjective(metric, own_positive_offset(self.sampler), tuple(coins.tolist()))
