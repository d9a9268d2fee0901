"""OA, the order attack: the query is perturbed so that its top k come in another order.

With c_1 ... c_k the k items nearest to the clean query, in an order that is drawn at random, and q~
the perturbed query,

    L = sum_{i<j} max(0, d(q~, c_i) - d(q~, c_j)) / k^2 + xi * L_QA+(c_1 ... c_k)

(Zhou et al., ICCV 2021, relative order loss.) The second term keeps the k items at the top. The
paper writes the sum without 1 / k^2. The published code (cdluminate/advorder, ``lib/common.py``)
takes the mean over a k x k matrix, and its xi = 10 goes with that: so it is here.

Reported are Kendall's tau between the order that was drawn and the one that is returned, and the
mean rank of the k items. Tied pairs count 0 in tau.

The published code counts the query itself among its k items. Here it never sees itself, in all
suites. The paper's budget is ``oa:alpha=1/255,steps=24`` with eps = 2, 4, 8, 16 of 255.
"""

from __future__ import annotations

from dataclasses import dataclass

from dmlbench.attacks.base import ATTACKS, Attack, Column, RowWise
from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.attacks.engine.query_loss import QueryLoss
from dmlbench.common.lazy import torch
from dmlbench.core.papers import Paper
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.metrics.distance import rowwise, rowwise_gradient

ADVORDER = Paper(
    key="zhou2021order",
    title="Practical Relative Order Attack in Deep Ranking",
    authors="Zhou, Mo and Wang, Le and Niu, Zhenxing and Zhang, Qilin and Xu, Yinghui and "
    "Zheng, Nanning and Hua, Gang",
    venue="ICCV",
    year=2021,
    url="https://arxiv.org/abs/2103.05248",
)
TAU = (
    "Kendall's tau between the order that the attacker wants and the one that is returned: about "
    "0 is untouched, 1 a full success of the attack."
)
MEAN_RANK = (
    "Mean number of items ahead of the reordered ones: (k - 1) / 2 where they stay at the top, "
    "more where the attack pushes them out of sight."
)


def kendall_tau(d: torch.Tensor, tie: float) -> torch.Tensor:
    """Kendall's tau (B,) float64 between the places in a row and the distances ``d`` (B, k).

    Args:
        d: distances, in the order that is wanted; 1 where they rise, -1 where they fall.
        tie: a pair that differs by at most this counts 0.
    """
    k = d.shape[1]
    gap = d[:, None, :].double() - d[:, :, None].double()  # of the later item to the earlier one
    sign = (gap > tie).double() - (gap < -tie).double()
    return sign.triu(1).sum((1, 2)) / (k * (k - 1) / 2)


@dataclass(frozen=True)
class OrderGoal(RowWise):
    """OA: the items ``kept.candidates`` (B, k) in the order in which they stand.

    Attributes:
        xi: weight of ``kept``.
        kept: QA+ on these items.
    """

    xi: float
    kept: QueryLoss

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (B,) and gradients (B, D)."""
        x, metric = self.kept.gallery.embeddings[self.kept.candidates], self.kept.gallery.metric
        d = rowwise(e[:, None], x, metric)
        gap = (d[:, :, None] - d[:, None, :]).triu(1)  # of the earlier item to the later one
        wrong = (gap > 0).to(e.dtype)
        scale = x.shape[1] ** 2
        weight = wrong.sum(2) - wrong.sum(1)
        pull = (weight[..., None] * rowwise_gradient(e[:, None], x, metric)).sum(1)
        kept, keep = self.kept.value_and_grad(e, step)
        order = gap.clamp(min=0).sum((1, 2)) / scale
        return order + self.xi * kept, pull / scale + self.xi * keep

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        """Kendall's tau, and the mean rank from 0."""
        gallery = self.kept.gallery
        x = gallery.embeddings[self.kept.candidates].double()
        d = rowwise(e.double()[:, None], x, gallery.metric)
        return {
            "OA": kendall_tau(d, gallery.tie),
            "OA:mR": self.kept.items_ahead(e).mean(1),
        }


def wanted_order(gallery: Gallery, index: torch.Tensor, k: int, seed: int) -> torch.Tensor:
    """(B, k) positions of the k items nearest to each clean query, in a random order."""
    return gallery.draw(index, k, seed, "oa", gallery.nearest(index, k))


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class OrderAttack(Attack):
    """OA by gradients (Zhou et al., ICCV 2021)."""

    card = Card("oa", "put a query's top k into a random order", ADVORDER)
    columns = (
        Column("OA", "", "lower", TAU, (-1, 1)),
        Column("OA:mR", "", "higher", MEAN_RANK, (0, float("inf"))),
    )
    held_against_noise = False  # the best of five noises reorders a few items by chance

    k: int = parameter(5, "items whose order is changed; the paper has 5, 10, 25", at_least=2)
    xi: float = parameter(10.0, "weight of the loss that keeps them at the top", at_least=0)

    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> OrderGoal:
        """The loss on the order that is drawn for each query."""
        chosen = wanted_order(gallery, index, self.k, seed)
        return OrderGoal(self.xi, QueryLoss(True, True, gallery, index, chosen))
