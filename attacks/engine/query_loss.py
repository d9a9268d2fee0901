"""The loss of QA+ and QA-, and the ranks of their candidates.

With c a chosen candidate, x the other gallery items and q~ the perturbed query,

    QA+:  L = mean_c mean_x max(0, d(q~, c) - d(q~, x))
    QA-:  L = mean_c mean_x max(0, d(q~, x) - d(q~, c))          (AdvRank, query attack)

An item x is active where its max(0, ...) is not zero. Loss and gradient need two sums over x only:
of the active items, and of the active items weighted by 1 / d. So a step is two matrix products
with the gallery, a chunk of it at a time, and no graph.

``strict`` leaves out the candidate itself and what the query never sees, such as its own entry, and
counts ties half. ``ers``, as the published code, keeps both and counts strictly closer items.
"""

from __future__ import annotations

from dataclasses import dataclass

from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.attacks.engine.objective import RowWise
from dmlbench.common.lazy import torch
from dmlbench.metrics.distance import pairwise, rowwise, rowwise_gradient
from dmlbench.metrics.ranks import percentile_rank
from dmlbench.metrics.relevance import put

CHUNK = 1024  # gallery items at once: memory is B x CHUNK whatever the gallery's size


@dataclass(frozen=True)
class QueryLoss(RowWise):
    """The loss of QA+ or QA- for a batch of queries with m candidates each.

    Attributes:
        up: true for QA+ (raise the candidates), false for QA- (lower them).
        strict: the papers' definition: excluded items are left out, ties count half.
        gallery: the items that the candidates are ranked among.
        index: (B,) the numbers of the queries.
        candidates: (B, m) positions of the candidates.
    """

    up: bool
    strict: bool
    gallery: Gallery
    index: torch.Tensor
    candidates: torch.Tensor

    @property
    def others(self) -> torch.Tensor:
        """(B,) the number of items that the candidates of each query are ranked among."""
        seen = self.gallery.seen[self.index]
        return seen - 1 if self.strict else torch.full_like(seen, len(self.gallery))

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (B,) and gradients (B, D); at a tie an item counts as active."""
        sign = 1 if self.up else -1
        x, metric = self.gallery.embeddings, self.gallery.metric
        excluded = self.gallery.relevance.excluded
        chosen = x[self.candidates]
        a = rowwise(e[:, None], chosen, metric)
        loss, pull = torch.zeros_like(a[:, 0]), torch.zeros_like(e)
        active_items = torch.zeros_like(a)  # K: active items a candidate
        weight = torch.zeros_like(a[:, 0])  # sum of active / d over candidates and items
        for first, items in self._chunks():
            b = pairwise(e, items, metric)
            count = torch.zeros_like(b)  # candidates for which an item is active
            for m in range(a.shape[1]):
                gap = a[:, m : m + 1] - b if self.up else b - a[:, m : m + 1]
                put(gap, self.candidates[:, m : m + 1], -torch.inf, first)
                excluded.put(gap, self.index, -torch.inf, first)
                active = gap >= 0
                loss += gap.clamp_(min=0).sum(1)
                active_items[:, m] += active.sum(1)
                count += active
            if metric == "C":
                v = count
            else:
                v = torch.where(b > 0, count / b, 0)
                weight += v.sum(1)
            pull += v @ items
        toward = torch.zeros_like(e)
        # in ers the excluded items, by their difference: products cancel where the own entry starts
        for position in () if self.strict else excluded.of(self.index).unbind(1):
            there, entry = (position >= 0)[:, None], x[position.clamp(min=0)]
            gap = sign * (a - rowwise(e, entry, metric)[:, None])
            gap = gap.masked_fill(~there, -torch.inf)
            loss += gap.clamp(min=0).sum(1)
            active_items += gap >= 0
            toward -= (gap >= 0).sum(1, keepdim=True) * rowwise_gradient(e, entry, metric)
        # d L / d e = sign / (n m) * (sum_c K_c dA_c/de - sum_x count_x dB_x/de)
        toward = toward + (
            active_items[..., None] * rowwise_gradient(e[:, None], chosen, metric)
        ).sum(1)
        gradient = toward + pull if metric == "C" else toward - (weight[:, None] * e - pull)
        scale = self.others * a.shape[1]
        stopped = active_items.sum(1, keepdim=True) == 0
        return loss / scale, (sign * gradient / scale[:, None]).masked_fill(stopped, 0)

    def rank(self, e: torch.Tensor) -> torch.Tensor:
        """(B,) percentile rank of the candidates in the queries' lists, mean over the m."""
        ahead = self.items_ahead(e, own=not self.strict)
        return percentile_rank(ahead, torch.zeros_like(ahead), self.others[:, None]).mean(1)

    def items_ahead(self, e: torch.Tensor, own: bool = False) -> torch.Tensor:
        """(B, m) how many items are closer than each candidate, ties half (in ``ers`` not at all).

        Args:
            e: (B, D) embeddings of the queries.
            own: count what the query never sees too, such as its own entry.
        """
        e = e.double()
        metric, tie = self.gallery.metric, self.gallery.tie
        a = rowwise(e[:, None], self.gallery.embeddings[self.candidates].double(), metric)
        ahead = torch.zeros_like(a)
        for first, items in self._chunks():
            b = pairwise(e, items.double(), metric)
            for m in range(a.shape[1]):
                gap = a[:, m : m + 1] - b
                put(gap, self.candidates[:, m : m + 1], -torch.inf, first)
                if not own:
                    self.gallery.relevance.excluded.put(gap, self.index, -torch.inf, first)
                if self.strict:
                    ahead[:, m] += ((gap > tie).double() + (gap >= -tie).double()).sum(1) / 2
                else:
                    ahead[:, m] += (gap > 0).sum(1)
        return ahead

    def _chunks(self) -> list[tuple[int, torch.Tensor]]:
        parts = torch.split(self.gallery.embeddings, CHUNK)
        return [(i * CHUNK, part) for i, part in enumerate(parts)]
