"""The Square Attack on the top-1, through distances or through the ranked list alone.

    see=ranks:      what a user of a search engine sees: the order of the items, and their classes.
                    L = a_1 + mean_j a_j / (N + 1), a_j the number of items of the own class ahead
                    of the j-th item of another class, j = 1 ... 10
    see=distances:  the distances beside it. L = M, the margin of ``dmlbench.attacks.top1``

As long as a query is right its own class has the rank 1, so what tells how near it is to failing
is a_1; at a_1 = 0 it is broken. With ``of=item`` a_1 is 1 until then, and the search is blind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dmlbench.attacks.base import ATTACKS
from dmlbench.attacks.black_box import TopOneBlackBox, columns
from dmlbench.attacks.engine.square import Square
from dmlbench.attacks.top1 import TopOneGoal
from dmlbench.core.papers import Paper
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter

SQUARE = Paper(
    key="andriushchenko2020square",
    title="Square Attack: A Query-Efficient Black-Box Adversarial Attack via Random Search",
    authors="Andriushchenko, Maksym and Croce, Francesco and Flammarion, Nicolas and "
    "Hein, Matthias",
    venue="ECCV",
    year=2020,
    url="https://arxiv.org/abs/1912.00049",
)
SHARE = 0.8


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class SquareAttack(TopOneBlackBox):
    """Random squares that are kept where they bring another class nearer."""

    card = Card("square", "break the top-1 by random squares, without a gradient", SQUARE)
    columns = columns("Square")
    loss = "margin"

    see: Literal["ranks", "distances"] = parameter(
        "ranks", "what an answer shows: the ranked list alone, or its distances too"
    )
    p: float = parameter(
        SHARE, "share of the image that the first squares cover", above=0, at_most=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None:
            raise ValueError("alpha is not for square: every change is of the size 2 eps")

    def seen(self, goal: TopOneGoal) -> TopOneGoal:
        """The margin, or what the ranked list shows of it."""
        return goal.ranked() if self.see == "ranks" else goal

    def search(self, active_set: bool = True, draws: int = 1) -> Square:
        """The search with squares."""
        return Square(self.filled(self.eps), self.budget, self.p, bits=self.bits)
