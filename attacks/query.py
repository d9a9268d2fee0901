"""QA+ and QA-, plain and semantics-preserving: move candidates in the ranking of a query.

With c a chosen candidate, x the other gallery items and q~ the perturbed query,

    QA+:  L = mean_c mean_x max(0, d(q~, c) - d(q~, x))
    QA-:  L = mean_c mean_x max(0, d(q~, x) - d(q~, c))          (AdvRank, query attack)

    SP-QA+-:  L_QA + xi * L_QA+(the query's nearest items),  xi = min(exp(s * L_QA+), 1e9)

(AdvRank's semantics-preserving query attack, with RobRank's dynamic xi, which carries no
gradient.) xi is of each query's own loss here, so that no query depends on its batch; the
published code takes one xi of the batch's mean loss.

Only sums over x enter: of active items, and of active items weighted by 1 / d. So a step is two
matrix products with the gallery, a chunk of it at a time, and no graph.

``strict`` leaves the query's own entry and the candidate itself out by index and counts ties
half. ``ers``, as the published code, keeps both and counts strictly closer items.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from dmlbench.attacks.base import ATTACKS, Attack, Column, RowWise
from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.attacks.engine.targets import draw
from dmlbench.common.lazy import torch
from dmlbench.core.papers import ADVRANK, ROBRANK
from dmlbench.core.protocol import Threat
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.metrics.distance import pairwise, rowwise, rowwise_gradient
from dmlbench.metrics.ranks import percentile_rank

CHUNK = 1024  # gallery items at once: memory is B x CHUNK whatever the gallery's size
SP_ITEMS = 5  # nearest items that SP-QA keeps in place (AdvRank)
XI_LIMIT = 1e9


@dataclass(frozen=True)
class QueryLoss(RowWise):
    """QA+ or QA- of a batch of queries on m candidates each.

    Attributes:
        up: QA+ or QA-.
        strict: leave own entries out by index, count ties half.
        gallery: what the candidates are ranked among.
        index: (B,) the queries' own positions.
        candidates: (B, m) positions of the candidates.
    """

    up: bool
    strict: bool
    gallery: Gallery
    index: torch.Tensor
    candidates: torch.Tensor

    @property
    def others(self) -> int:
        """The number of items a candidate is ranked among."""
        return len(self.gallery) - 2 if self.strict else len(self.gallery)

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (B,) and gradients (B, D); at a tie the hinge counts as active."""
        sign = 1 if self.up else -1
        x, metric = self.gallery.embeddings, self.gallery.metric
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
                self._leave_out(gap, first, self.candidates[:, m])
                self._leave_out(gap, first, self.index)
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
        if not self.strict:  # the own entry, by its difference: products cancel where it starts
            entry = x[self.index]
            gap = sign * (a - rowwise(e, entry, metric)[:, None])
            loss += gap.clamp(min=0).sum(1)
            active_items += gap >= 0
            toward = -(gap >= 0).sum(1, keepdim=True) * rowwise_gradient(e, entry, metric)
        else:
            toward = torch.zeros_like(e)
        # d L / d e = sign / (n m) * (sum_c K_c dA_c/de - sum_x count_x dB_x/de)
        toward = toward + (
            active_items[..., None] * rowwise_gradient(e[:, None], chosen, metric)
        ).sum(1)
        gradient = toward + pull if metric == "C" else toward - (weight[:, None] * e - pull)
        scale = self.others * a.shape[1]
        stopped = active_items.sum(1, keepdim=True) == 0
        return loss / scale, (sign * gradient / scale).masked_fill(stopped, 0)

    def rank(self, e: torch.Tensor) -> torch.Tensor:
        """(B,) percentile rank of the candidates in the queries' lists, mean over the m."""
        ahead = self.items_ahead(e, own=not self.strict)
        return percentile_rank(ahead, torch.zeros_like(ahead), self.others).mean(1)

    def items_ahead(self, e: torch.Tensor, own: bool = False) -> torch.Tensor:
        """(B, m) how many items are closer than each candidate, ties half (in ``ers`` not at all).

        Args:
            e: (B, D) embeddings of the queries.
            own: count the query's own entry too.
        """
        e = e.double()
        metric, tie = self.gallery.metric, self.gallery.tie
        a = rowwise(e[:, None], self.gallery.embeddings[self.candidates].double(), metric)
        ahead = torch.zeros_like(a)
        for first, items in self._chunks():
            b = pairwise(e, items.double(), metric)
            for m in range(a.shape[1]):
                gap = a[:, m : m + 1] - b
                self._leave_out(gap, first, self.candidates[:, m])
                if not own:
                    self._leave_out(gap, first, self.index)
                if self.strict:
                    ahead[:, m] += ((gap > tie).double() + (gap >= -tie).double()).sum(1) / 2
                else:
                    ahead[:, m] += (gap > 0).sum(1)
        return ahead

    def _chunks(self) -> list[tuple[int, torch.Tensor]]:
        parts = torch.split(self.gallery.embeddings, CHUNK)
        return [(i * CHUNK, part) for i, part in enumerate(parts)]

    def _leave_out(self, gap: torch.Tensor, first: int, position: torch.Tensor) -> None:
        """Make the items at ``position`` (B,) inactive in ``gap`` (B, chunk)."""
        inside = (position >= first) & (position < first + gap.shape[1])
        column = (position - first).clamp(0, gap.shape[1] - 1)[:, None]
        gap.scatter_(1, column, gap.gather(1, column).masked_fill(inside[:, None], -torch.inf))


@dataclass(frozen=True)
class QueryGoal(RowWise):
    """Plain QA: the loss and the rank of its candidates."""

    column: str
    loss: QueryLoss

    def take(self, rows: torch.Tensor) -> QueryGoal:
        """The same goal for the queries ``rows``."""
        return QueryGoal(self.column, self.loss.take(rows))

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``QueryLoss``."""
        return self.loss.value_and_grad(e, step)

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        """Percentile rank of the candidates."""
        return {self.column: self.loss.rank(e)}


@dataclass(frozen=True)
class SemanticsPreservingGoal(RowWise):
    """QA and, weighted by xi, QA+ on the query's own nearest items."""

    column: str
    loss: QueryLoss
    semantics: QueryLoss
    scale: float

    def take(self, rows: torch.Tensor) -> SemanticsPreservingGoal:
        """The same goal for the queries ``rows``."""
        loss, semantics = self.loss.take(rows), self.semantics.take(rows)
        return SemanticsPreservingGoal(self.column, loss, semantics, self.scale)

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted sum of both losses; xi is a constant of the step."""
        loss, gradient = self.loss.value_and_grad(e, step)
        kept, keep = self.semantics.value_and_grad(e, step)
        limit = torch.log(torch.tensor(XI_LIMIT, dtype=kept.dtype))
        xi = (self.scale * kept).clamp(max=float(limit)).exp()
        return loss + xi * kept, gradient + xi[:, None] * keep

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        """Ranks of the candidates and of the items that should stay."""
        return {self.column: self.loss.rank(e), f"{self.column}:GT": self.semantics.rank(e)}


@dataclass(frozen=True, kw_only=True)
class QueryAttack(Attack):
    """What the four query attacks share."""

    up: ClassVar[bool]

    m: int = parameter(1, "number of candidates moved in a query's ranking", at_least=1)

    def query_loss(self, gallery: Gallery, index: torch.Tensor, seed: int) -> QueryLoss:
        """Candidates: uniform for QA+, from the nearest 1% (at least m) for QA-."""
        purpose = "qa+" if self.up else "qa-"
        pool = None if self.up else gallery.neighbourhood(index, self.m)
        chosen = draw(len(gallery), index, self.m, seed, purpose, pool)
        return QueryLoss(self.up, self.strict, gallery, index, chosen)

    @abc.abstractmethod
    def goal(
        self, gallery: Gallery, index: torch.Tensor, seed: int
    ) -> QueryGoal | SemanticsPreservingGoal:
        """Plain or semantics-preserving."""


@dataclass(frozen=True, kw_only=True)
class PlainQueryAttack(QueryAttack):
    """QA without regard for the rest of the ranking."""

    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> QueryGoal:
        """The loss on the drawn candidates."""
        return QueryGoal(self.columns[0].name, self.query_loss(gallery, index, seed))


@dataclass(frozen=True, kw_only=True)
class SemanticsPreservingQueryAttack(QueryAttack):
    """QA that keeps the query's five nearest items (but for candidates) where they are."""

    xi: float | None = parameter(None, "scale s of the weight xi = exp(s L_sp)", at_least=0)

    def resolve(self, threat: Threat) -> Self:
        """Fill in xi's scale too."""
        scale = threat.sp_scale if self.xi is None else self.xi
        return replace(super().resolve(threat), xi=scale)

    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> SemanticsPreservingGoal:
        """The loss on the candidates, and QA+ on the nearest items that are none of them."""
        loss = self.query_loss(gallery, index, seed)
        near = gallery.nearest(min(SP_ITEMS + self.m, len(gallery) - 1))[index].long()
        chosen = (near[..., None] == loss.candidates[:, None]).any(2)
        order = chosen.to(torch.uint8).argsort(dim=1, stable=True)[:, :SP_ITEMS]
        kept = QueryLoss(True, self.strict, gallery, index, near.gather(1, order))
        assert self.xi is not None
        return SemanticsPreservingGoal(self.columns[0].name, loss, kept, self.xi)


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class QueryUp(PlainQueryAttack):
    """QA+, candidates drawn uniformly from the gallery."""

    card = Card("qa+", "raise m random candidates in a query's ranking", ADVRANK)
    columns = (Column("QA+", "%", "higher"),)
    up = True


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class QueryDown(PlainQueryAttack):
    """QA-, candidates drawn from the query's nearest 1%."""

    card = Card("qa-", "lower m candidates that are near a query in its ranking", ADVRANK)
    columns = (Column("QA-", "%", "lower"),)
    up = False


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class SemanticsPreservingQueryUp(SemanticsPreservingQueryAttack):
    """SP-QA+; also reports the rank of the items that should stay (lower is less visible)."""

    card = Card("sp-qa+", "QA+ that keeps the query's nearest items in place", ROBRANK)
    columns = (Column("SP-QA+", "%", "higher"), Column("SP-QA+:GT", "%", "higher"))
    up = True


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class SemanticsPreservingQueryDown(SemanticsPreservingQueryAttack):
    """SP-QA-; also reports the rank of the items that should stay."""

    card = Card("sp-qa-", "QA- that keeps the query's nearest items in place", ROBRANK)
    columns = (Column("SP-QA-", "%", "lower"), Column("SP-QA-:GT", "%", "higher"))
    up = False
