"""The order attack by forward passes, for a user who sees the first n items of a list.

What is maximised is the short-range ranking correlation: over the pairs of the k items that should
come in a given order (``dmlbench.attacks.order``),

    tau_S = sum_{i<j} S_ij / (k choose 2),    S_ij = 1 where both are in the list, in this order,
                                              S_ij = -1 otherwise

(Zhou et al., ICCV 2021, algorithm 1). At tau_S = 1 the query is broken. The searches have the
parameters of the published code (cdluminate/advorder, ``lib/reorder.py``):

    nes     gradients estimated from 50 images with normal noise of 2 eps, cut off at +-eps; sign
            steps of 2/255
    spsa    the same with random signs, of 2/255, and without momentum
    pso     a swarm of 40 particles
    random  uniform noise around the image

Its NES follows Adam's direction, whose bias correction divides by zero in the first step. Momentum
0.9, which the code names too, is in its place here. A step of NES and SPSA shows the image itself
too, 51 in place of 50, and weights each pair by what was shown of it, inside the ball
(``dmlbench.attacks.engine.nes``). The paper has lists of n = 50 items, of k, and
of all. Images of more than 32 pixels a side get coarse noise (``targets.coarse``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from dmlbench.attacks.base import ATTACKS, Column
from dmlbench.attacks.engine.black_box import BlackBox
from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.attacks.engine.nes import NES
from dmlbench.attacks.engine.pso import PSO
from dmlbench.attacks.engine.random_search import RandomSearch
from dmlbench.attacks.engine.targets import COARSE
from dmlbench.attacks.nes import MOMENTUM
from dmlbench.attacks.order import ADVORDER, wanted_order
from dmlbench.attacks.returned_list import ListAttack, ListGoal, passes
from dmlbench.common.lazy import torch
from dmlbench.core.protocol import Threat
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter

SAMPLES, STEP = 50, 2 / 255
TAU_S = (
    "Short-range ranking correlation with the order that the attacker wants, of what a user sees: "
    "1 is a full success; a pair that has left the list counts -1."
)


@dataclass(frozen=True)
class ShortRangeGoal(ListGoal):
    """The order of ``items`` (B, k) as the list shows it."""

    def score(self, places: torch.Tensor) -> torch.Tensor:
        """tau_S, from -1 to 1."""
        right = (places[:, :, None] < places[:, None, :]) & (places < self.n)[:, None, :]
        k = places.shape[1]
        return 4 * right.triu(1).sum((1, 2)).double() / (k * (k - 1)) - 1

    def done(self, score: torch.Tensor) -> torch.Tensor:
        """The whole order is the wanted one."""
        return score == 1

    def loss(self, score: torch.Tensor) -> torch.Tensor:
        """Minus tau_S."""
        return -score


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class OrderListAttack(ListAttack):
    """OA on what a user sees (Zhou et al., ICCV 2021)."""

    card = Card(
        "oa-list", "put a query's top k into a random order, seen as a list alone", ADVORDER
    )
    columns = (
        Column("OA-list", "", "lower", TAU_S, (-1, 1)),
        passes("OA-list", "the order was the wanted one"),
    )
    auto = "by nes and spsa alpha=2/255"

    k: int = parameter(5, "items whose order is changed; the paper has 5, 10, 25", at_least=2)
    by: Literal["nes", "spsa", "pso", "random"] = parameter("nes", "the search")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n < self.k:
            raise ValueError(f"n={self.n} shows fewer than the k={self.k} items: give a larger n")
        if self.alpha is not None and self.by in ("pso", "random"):
            raise ValueError(f"alpha is not for by={self.by}: it takes no steps of one size")

    @property
    def version(self) -> int:
        """The card's version, plus 1 by NES, whose noise was not cut off at eps before."""
        return super().version + (self.by == "nes")

    def resolve(self, threat: Threat) -> Self:
        """Fill in the size of a step of NES and SPSA too."""
        resolved = super().resolve(threat)
        if self.by in ("pso", "random"):
            return resolved
        return replace(resolved, alpha=self.alpha or STEP)

    def search(self, active_set: bool = True, draws: int = 1) -> BlackBox[Any]:
        """The search."""
        eps = self.filled(self.eps)
        if self.by == "pso":
            return PSO(eps, self.budget, bits=self.bits)
        if self.by == "random":
            return RandomSearch(eps, self.budget, bits=self.bits)
        nes = self.by == "nes"
        return NES(
            eps,
            self.budget,
            self.filled(self.alpha),
            SAMPLES,
            2 * eps if nes else STEP,
            MOMENTUM if nes else 0.0,
            most=eps if nes else math.inf,
            signs=not nes,
            side=COARSE,
            bits=self.bits,
        )

    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> ShortRangeGoal:
        """The order that is drawn for each query, as for ``oa``."""
        lists, items = self.seen_lists(gallery), wanted_order(gallery, index, self.k, seed)
        return ShortRangeGoal("OA-list", lists, self.n, self.budget, seed, index, items)
