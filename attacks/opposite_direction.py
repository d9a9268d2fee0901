"""ODFA, the opposite-direction feature attack: the query's embedding makes a U-turn.

    L = |f(q~) + f(q)|^2        with embeddings of unit length

(Zheng et al., IJCV 2022; layumi/U_turn, ``generate_attack_query.py``, method 5.) For unit vectors
|a + b|^2 + |a - b|^2 = 4. So the least L is the largest |f(q~) - f(q)|, and this is what is
computed: at the start the gradient of L is zero, and the published code follows rounding noise. In
the first step 1e-7 is added to f(q), as in ES (``dmlbench.attacks.embedding_shift``). Under metric
N ODFA is ES. Under E it turns the embedding and does not lengthen it.

CEA-LIST/adv-reid has an ODFA too, which maximises L in the place of minimising it.
"""

from __future__ import annotations

from dataclasses import dataclass

from dmlbench.attacks import moved_query
from dmlbench.attacks.base import ATTACKS, Attack, RowWise
from dmlbench.attacks.embedding_shift import FIRST_OFFSET
from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.common.lazy import torch
from dmlbench.core.papers import Paper
from dmlbench.core.registry import Card
from dmlbench.metrics.distance import SHORTEST, rowwise, rowwise_gradient

ZHENG = Paper(
    key="zheng2022uturn",
    title="U-turn: Crafting Adversarial Queries with Opposite-direction Features",
    authors="Zheng, Zhedong and Zheng, Liang and Yang, Yi and Wu, Fei",
    venue="IJCV",
    year=2022,
    url="https://arxiv.org/abs/1809.02681",
)
COLUMNS = moved_query.recall_and_map("ODFA")


@dataclass(frozen=True)
class OppositeGoal(RowWise):
    """ODFA: away from ``origin`` (B, D), the directions of the clean queries ``index`` (B,)."""

    gallery: Gallery
    index: torch.Tensor
    origin: torch.Tensor

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (B,), minus the distance of the unit vectors, and gradients (B, D)."""
        origin = self.origin + FIRST_OFFSET if step == 0 else self.origin
        length = torch.linalg.vector_norm(e, dim=1, keepdim=True).clamp(min=SHORTEST)
        unit = e / length
        slope = rowwise_gradient(unit, origin, "N")
        tangent = slope - (slope * unit).sum(1, keepdim=True) * unit
        return -rowwise(unit, origin, "N"), -tangent / length

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        """R@1 and mAP."""
        return moved_query.outcomes(COLUMNS, e, self.index, self.gallery)


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class OppositeDirection(Attack):
    """ODFA (Zheng et al., IJCV 2022)."""

    card = Card("odfa", "turn a query's embedding to the opposite direction", ZHENG)
    columns = COLUMNS

    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> OppositeGoal:
        """No target but the opposite of the query itself."""
        origin = torch.nn.functional.normalize(gallery.queries[index], dim=1)
        return OppositeGoal(gallery, index, origin)
