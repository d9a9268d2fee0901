"""LTM, GTM and GTT: the query is perturbed so that wrong items are at the top of its ranking.

    LTM:  L = max(0, max_{other class} d(q~, x) - min_{own class} d(q~, x))
                                              (Wang et al., CVPR 2020, learning to misrank)
    GTM:  L = d(q~, the nearest item of another class)          (RobRank, greedy top-1 misranking)
    GTT:  the QA- loss on the query's top-1 item                (RobRank, top-1 translocation)

"The own class" are the positives of the query, "other classes" all that is no positive and that the
query sees, distractors too. In ``ers``, as the published code:

- LTM: the minimum over the own class includes what the query never sees, as its own entry.
- GTM: "another class" is one other than that of the query's top-1 item. The target is not the
  nearest item of these classes. If that item is number k among all items of these classes, the
  target is item k of the whole gallery: an indexing slip, and close to an arbitrary item.
- GTT: the loss keeps the own entries, as QA- does in ``ers``.
"""

from __future__ import annotations

from dataclasses import dataclass

from dmlbench.attacks.base import ATTACKS, Attack, Column, RowWise
from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.attacks.engine.query_loss import CHUNK, QueryLoss
from dmlbench.common.lazy import torch
from dmlbench.core.papers import ROBRANK, Paper
from dmlbench.core.registry import Card
from dmlbench.metrics.distance import pairwise, rowwise, rowwise_gradient

LTM = Paper(
    key="wang2020transferable",
    title="Transferable, Controllable, and Inconspicuous Adversarial Attacks on Person "
    "Re-identification With Deep Mis-Ranking",
    authors="Wang, Hongjun and Wang, Guangrun and Li, Ya and Zhang, Dongyu and Lin, Liang",
    venue="CVPR",
    year=2020,
    url="https://arxiv.org/abs/2004.04199",
)

RETAINED = 4  # GTT: the top-1 item counts as retained while it is in the top 4
STAYED = "Share of queries whose top-1 item stays in the top 4, in percent."


@dataclass(frozen=True)
class MisrankGoal(RowWise):
    """LTM: the query's own class farther away than every other class.

    ``own`` is true where positives that are excluded, as its own entry, count too (``ers``).
    """

    gallery: Gallery
    index: torch.Tensor
    own: bool

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (B,) and gradients (B, D); zero for a query without a positive."""
        far, near, alone = self._extremes(e)
        x, metric = self.gallery.embeddings, self.gallery.metric
        gap = rowwise(e, x[far], metric) - rowwise(e, x[near], metric)
        active = ((gap > 0) & ~alone)[:, None]
        slope = rowwise_gradient(e, x[far], metric) - rowwise_gradient(e, x[near], metric)
        return gap.relu().masked_fill(alone, 0), slope * active

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        """R@1 of the perturbed query."""
        return {"LTM": self.gallery.recall_at_1(e, self.index)}

    def _extremes(self, e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B,) positions of the farthest other item and of the nearest positive, and true where
        either does not exist.
        """
        relevance = self.gallery.relevance
        far_d = torch.full_like(e[:, 0], -torch.inf)
        near_d = torch.full_like(e[:, 0], torch.inf)
        far, near = torch.zeros_like(self.index), torch.zeros_like(self.index)
        for first in range(0, len(self.gallery), CHUNK):
            items = slice(first, first + CHUNK)
            d = pairwise(e, self.gallery.embeddings[items], self.gallery.metric)
            same = relevance.positives.contains(self.index, first, d.shape[1])
            others = d.masked_fill(same, -torch.inf)
            relevance.excluded.put(others, self.index, -torch.inf, first)
            other_d, other = others.max(1)
            own = d.masked_fill(~same, torch.inf)
            if not self.own:
                relevance.excluded.put(own, self.index, torch.inf, first)
            same_d, closest = own.min(1)
            farther, closer = other_d > far_d, same_d < near_d
            far, far_d = torch.where(farther, other + first, far), far_d.maximum(other_d)
            near, near_d = torch.where(closer, closest + first, near), near_d.minimum(same_d)
        return far, near, near_d.isinf() | far_d.isinf()


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class LearningToMisrank(Attack):
    """LTM (Wang et al., CVPR 2020)."""

    card = Card("ltm", "other classes closer than the query's own class", LTM)
    columns = (Column("LTM", "%", "higher", "R@1 after the attack, in percent."),)

    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> MisrankGoal:
        """No fixed target: the farthest and the nearest item change with the query."""
        return MisrankGoal(gallery, index, own=not self.strict)


@dataclass(frozen=True)
class GreedyMisrankGoal(RowWise):
    """GTM: towards ``target`` (B, D) by distance."""

    gallery: Gallery
    index: torch.Tensor
    target: torch.Tensor

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (B,) and gradients (B, D)."""
        metric = self.gallery.metric
        return rowwise(e, self.target, metric), rowwise_gradient(e, self.target, metric)

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        """R@1 of the perturbed query."""
        return {"GTM": self.gallery.recall_at_1(e, self.index)}


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class GreedyTopOneMisranking(Attack):
    """GTM (RobRank)."""

    card = Card("gtm", "move a query onto the nearest item of another class", ROBRANK)
    columns = (Column("GTM", "%", "higher", "R@1 after the attack, in percent."),)

    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> GreedyMisrankGoal:
        """The nearest item of another class; in ``ers`` the slip of the module's docstring."""
        if self.strict:
            target = gallery.nearest_of_another_class(index)
        else:
            nearest = gallery.nearest_unlike_the_top1(index)
            top1 = gallery.classes[gallery.nearest(index, 1)[:, 0]]
            unlike = gallery.classes[None, :] != top1[:, None]
            before = torch.arange(len(gallery), device=index.device) < nearest[:, None]
            target = (unlike & before).sum(1)
        return GreedyMisrankGoal(gallery, index, gallery.embeddings[target])


@dataclass(frozen=True)
class TranslocationGoal(QueryLoss):
    """GTT: the QA- loss on the top-1 item; the outcome is 100 while it is in the top 4."""

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        """100 where fewer than 4 others are closer, else 0; own entry left out.

        A tie counts half, and in ``ers`` not at all.
        """
        ahead = self.items_ahead(e)
        return {"GTT": 100 * (ahead[:, 0] < RETAINED).double()}


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class GreedyTopOneTranslocation(Attack):
    """GTT (RobRank)."""

    card = Card("gtt", "push the query's top-1 item out of the top 4", ROBRANK)
    columns = (Column("GTT", "%", "higher", STAYED),)

    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> TranslocationGoal:
        """QA- on the top-1 item of the clean query."""
        if self.strict:
            gallery.check_ranks()
        top1 = gallery.nearest(index, 1)
        return TranslocationGoal(False, self.strict, gallery, index, top1)
