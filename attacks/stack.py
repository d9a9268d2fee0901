"""``top1``: the attacks on the top-1 in turn, each on the queries that the ones before have left.

Margin, dlr and knn (``dmlbench.attacks.top1``) follow the gradient. Then the Square Attack
shows images to what is left and sees ranked lists alone (``dmlbench.attacks.square``): what it
breaks counts as broken, and its share is a number of its own. A black box that breaks what white
box left is a sign that gradients are masked. 200 forward passes cost less than one of the stages,
and find most of what 1000 do: HM's committed model falls from 90 to 55 and 45 (60 queries, 26/255).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from dmlbench.attacks.base import ATTACKS, Attacked, Column
from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.attacks.engine.optimizer import Optimizer, Perturbed, Search, expectation
from dmlbench.attacks.engine.square import Square
from dmlbench.attacks.engine.targets import random_start
from dmlbench.attacks.square import SHARE
from dmlbench.attacks.top1 import CROCE, HELP, TopOneAttack, TopOneGoal
from dmlbench.common.lazy import np, torch
from dmlbench.core.flags import Flag, black_box
from dmlbench.core.registry import Card

STAGES = ("margin", "dlr", "knn")  # shift broke nothing that these had left, on any model measured
BUDGET = 200  # forward passes of the Square Attack
BY_SQUARE = "Top1:Square"


@dataclass(frozen=True)
class StackGoal(TopOneGoal):
    """The loss of a stage; of a query that nothing was tried on, Square has broken nothing."""

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        """R@1, and 0."""
        right = self.first(e)
        return {self.column: right, BY_SQUARE: 0 * right}


@dataclass(frozen=True)
class Stacked(Perturbed):
    """With the queries that the Square Attack broke, (B,) bool."""

    by_square: torch.Tensor


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class TopOneStack(TopOneAttack):
    """Margin, dlr and knn in turn, then Square, each on the queries that are left."""

    card = Card("top1", "margin, dlr, knn and Square in turn on the queries still right", CROCE, 3)
    columns = (
        Column("Top1", "%", "higher", HELP),
        Column(
            BY_SQUARE,
            "%",
            "lower",
            "Points of R@1 that only the Square Attack on ranked lists took, after the stages that "
            "follow the gradient: more than 0.2 is a sign that gradients are masked.",
        ),
    )
    loss = "margin"

    def __post_init__(self) -> None:
        if self.norm != "linf":
            raise ValueError("norm must be linf, as Square knows no other: use margin, dlr or knn")

    @property
    def most_passes(self) -> int:
        """Those of each stage."""
        return super().most_passes * len(STAGES)

    @property
    def most_forward_passes(self) -> int:
        """Those of Square."""
        return BUDGET * max(1, self.restarts)

    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> StackGoal:
        """The margin."""
        margin = super().goal(gallery, index, seed)
        return StackGoal(**{field.name: getattr(margin, field.name) for field in fields(margin)})

    def flags(
        self, outcomes: Mapping[str, np.ndarray[Any, Any]], findings: Mapping[str, Any]
    ) -> list[Flag]:
        """A flag where Square broke what the gradient had left."""
        return black_box(float(np.nanmean(outcomes[BY_SQUARE])))

    def read(
        self, goal: StackGoal, perturbed: Perturbed, after: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """R@1, and 100 where Square broke the query."""
        assert isinstance(perturbed, Stacked)
        right = goal.first(after)
        share = 100 * (perturbed.by_square & (right == 0)).double()
        return {goal.column: right, BY_SQUARE: share.masked_fill(right.isnan(), torch.nan)}

    def perturb(
        self,
        optimizer: Search,
        embed: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        goal: StackGoal,
        start: torch.Tensor | None,
    ) -> Stacked:
        """The margin from ``start``, the others from random places in the ball, then Square."""
        assert isinstance(optimizer, Optimizer)
        draws = optimizer.draws
        found = optimizer.run(embed, images, goal, start)
        found = replace(found, full_passes=found.full_passes * len(STAGES))
        left = self._left(embed, found, goal, draws)
        for stage, loss in enumerate(STAGES):
            if stage == 0 or not len(left):
                continue
            part = replace(goal.take(left), name=loss)
            begin = random_start(images[left], self.eps or 0, part.index, goal.seed, stage)
            found = found.replaced(left, optimizer.run(embed, images[left], part, begin))
            left = self._left(embed, found, goal, draws)
        by_square = torch.zeros_like(goal.index, dtype=torch.bool)
        if len(left):
            square = Square(self.eps or 0, BUDGET, SHARE, bits=self.bits)
            shown = square.run(embed, images[left], goal.take(left).ranked())
            fell = shown.until > 0
            kept = torch.where(fell.view(-1, 1, 1, 1), shown.images, found.images[left])
            found = found.replaced(left, replace(shown, images=kept))
            by_square[left] = fell
        values = {field.name: getattr(found, field.name) for field in fields(Perturbed)}
        values["full_forward_passes"] = BUDGET * len(images)
        return Stacked(**values, by_square=by_square)

    def _left(
        self,
        embed: Callable[[torch.Tensor], torch.Tensor],
        found: Perturbed,
        goal: StackGoal,
        draws: int,
    ) -> torch.Tensor:
        """(b,) the queries that are still right, in one of the draws at least."""
        with torch.no_grad():
            right = expectation(draws, lambda: goal.first(embed(found.images)))
            return (right > 0).nonzero()[:, 0]

    def _worse(self, a: Attacked, b: Attacked) -> Attacked:
        """A query that the gradient breaks from one start is not Square's of another."""
        merged = super()._worse(a, b)
        white = torch.zeros_like(a.outcomes[BY_SQUARE], dtype=torch.bool)
        for one in (a, b):
            white |= (one.outcomes["Top1"] == 0) & (one.outcomes[BY_SQUARE] == 0)
        merged.outcomes[BY_SQUARE][white] = 0
        return merged
