"""QA+ and QA-, plain and semantics-preserving: the query is perturbed to move candidates.

With c a chosen candidate, x the other gallery items and q~ the perturbed query,

    QA+:  L = mean_c mean_x max(0, d(q~, c) - d(q~, x))
    QA-:  L = mean_c mean_x max(0, d(q~, x) - d(q~, c))          (AdvRank, query attack)

    SP-QA+-:  L_QA + xi * L_QA+(the query's nearest items),  xi = min(exp(s * L_QA+), 1e9)

(AdvRank's semantics-preserving query attack, with RobRank's dynamic xi, which carries no
gradient.) Here xi is computed from each query's own loss, so that no query depends on its batch;
the published code computes one xi from the mean loss of the batch.

The loss of QA+ and QA-, and what ``strict`` and ``ers`` change of it, is in
``dmlbench.attacks.engine.query_loss``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from dmlbench.attacks.base import ATTACKS, Attack, Column
from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.attacks.engine.query_loss import QueryLoss
from dmlbench.common.errors import CellError
from dmlbench.common.lazy import torch
from dmlbench.core.papers import ADVRANK, ROBRANK
from dmlbench.core.protocol import Threat
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter

SP_ITEMS = 5  # nearest items that SP-QA keeps in place (AdvRank)
XI_LIMIT = 1e9
RAISED = "Percentile rank that the chosen item reaches: 50 is untouched, 0 the top."
LOWERED = "Percentile rank that the chosen item falls to: 0 is untouched, 100 the bottom."
KEPT = "Percentile rank of the query's own nearest items: near 0 is untouched."


@dataclass(frozen=True)
class QueryGoal(QueryLoss):
    """Plain QA: the loss, and the rank of its candidates as the outcome ``column``."""

    column: str

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        """Percentile rank of the candidates."""
        return {self.column: self.rank(e)}


@dataclass(frozen=True)
class SemanticsPreservingGoal(QueryGoal):
    """QA and, weighted by xi = min(exp(scale * L), 1e9), QA+ on the query's own nearest items."""

    semantics: QueryLoss
    scale: float

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted sum of both losses; xi is a constant of the step."""
        loss, gradient = super().value_and_grad(e, step)
        kept, keep = self.semantics.value_and_grad(e, step)
        limit = torch.log(torch.tensor(XI_LIMIT, dtype=kept.dtype))
        xi = (self.scale * kept).clamp(max=float(limit)).exp()
        return loss + xi * kept, gradient + xi[:, None] * keep

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        """Ranks of the candidates and of the items that should stay."""
        return super().outcome(e) | {f"{self.column}:GT": self.semantics.rank(e)}


@dataclass(frozen=True, kw_only=True)
class QueryAttack(Attack):
    """The base of the four query attacks: it draws the candidates."""

    up: ClassVar[bool]

    m: int = parameter(1, "number of candidates moved in a query's ranking", at_least=1)

    def candidates(self, gallery: Gallery, index: torch.Tensor, seed: int) -> torch.Tensor:
        """(B, m) positions: uniform for QA+, from the nearest 1% (at least m) for QA-.

        Raises:
            CellError: the gallery is too small to draw or to rank them.
        """
        if self.strict:
            gallery.check_ranks()
        purpose = "qa+" if self.up else "qa-"
        pool = None if self.up else gallery.neighbourhood(index, self.m)
        return gallery.draw(index, self.m, seed, purpose, pool)


@dataclass(frozen=True, kw_only=True)
class PlainQueryAttack(QueryAttack):
    """QA without regard for the rest of the ranking."""

    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> QueryGoal:
        """The loss on the drawn candidates."""
        chosen = self.candidates(gallery, index, seed)
        return QueryGoal(self.up, self.strict, gallery, index, chosen, self.columns[0].name)


@dataclass(frozen=True, kw_only=True)
class SemanticsPreservingQueryAttack(QueryAttack):
    """QA that keeps the query's five nearest items (but for candidates) where they are."""

    held_against_noise = False  # noise, which keeps nothing in place, may move candidates further

    xi: float | None = parameter(
        None,
        "scale s in the weight min(exp(s L_sp), 1e9) of L_sp, the loss on the items kept; not the "
        "weight itself",
        at_least=0,
    )

    def resolve(self, threat: Threat) -> Self:
        """Fill in the scale of xi too."""
        scale = threat.sp_scale if self.xi is None else self.xi
        return replace(super().resolve(threat), xi=scale)

    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> SemanticsPreservingGoal:
        """The loss on the candidates, and QA+ on the nearest items that are not candidates.

        Raises:
            CellError: the gallery is too small for both.
        """
        chosen = self.candidates(gallery, index, seed)
        if gallery.least_seen < SP_ITEMS + self.m:
            raise CellError(
                f"{self.card.name} keeps {SP_ITEMS} items in place and moves {self.m}, and a query "
                f"sees {gallery.least_seen}: the gallery is too small"
            )
        near = gallery.nearest(index, SP_ITEMS + self.m)
        taken = (near[..., None] == chosen[:, None]).any(2)
        order = taken.to(torch.uint8).argsort(dim=1, stable=True)[:, :SP_ITEMS]
        kept = QueryLoss(True, self.strict, gallery, index, near.gather(1, order))
        assert self.xi is not None
        column = self.columns[0].name
        return SemanticsPreservingGoal(
            self.up, self.strict, gallery, index, chosen, column, kept, self.xi
        )


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class QueryUp(PlainQueryAttack):
    """QA+, candidates drawn uniformly from the gallery."""

    card = Card("qa+", "raise m random candidates in a query's ranking", ADVRANK)
    columns = (Column("QA+", "%", "higher", RAISED, rank=True),)
    up = True


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class QueryDown(PlainQueryAttack):
    """QA-, candidates drawn from the query's nearest 1%."""

    card = Card("qa-", "lower m candidates that are near a query in its ranking", ADVRANK)
    columns = (Column("QA-", "%", "lower", LOWERED, rank=True),)
    up = False


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class SemanticsPreservingQueryUp(SemanticsPreservingQueryAttack):
    """SP-QA+; also reports the rank of the items that should stay (lower is less visible)."""

    card = Card("sp-qa+", "QA+ that keeps the query's nearest items in place", ROBRANK)
    columns = (
        Column("SP-QA+", "%", "higher", RAISED, rank=True),
        Column("SP-QA+:GT", "%", "higher", KEPT, rank=True),
    )
    up = True


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class SemanticsPreservingQueryDown(SemanticsPreservingQueryAttack):
    """SP-QA-; also reports the rank of the items that should stay."""

    card = Card("sp-qa-", "QA- that keeps the query's nearest items in place", ROBRANK)
    columns = (
        Column("SP-QA-", "%", "lower", LOWERED, rank=True),
        Column("SP-QA-:GT", "%", "higher", KEPT, rank=True),
    )
    up = False
