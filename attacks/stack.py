"""``top1``: the attacks on the top-1 in turn, each on the queries that the ones before have left.

Margin, dlr and knn (``dmlbench.attacks.top1``) follow the gradient. Then the Square Attack
shows images to what is left and sees ranked lists alone (``dmlbench.attacks.square``): what it
breaks counts as broken, and its share is a number of its own. A black box that breaks what white
box left is a sign that gradients are masked. 200 forward passes cost less than one of the stages,
and find most of what 1000 do: HM's committed model falls from 90 to 55 and 45 (60 queries, 26/255).

With a randomised network an image is kept if its R@1 over a few draws is lower. This choice makes
Square look about 2 points stronger than it is. So the images with and without Square are shown to
the network once more, and the flag follows from these new draws and their standard error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from dmlbench.attacks.base import ATTACKS, Attacked, Column
from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.attacks.engine.optimizer import Optimizer, Perturbed, Search, expectation
from dmlbench.attacks.engine.outcomes import Outcomes
from dmlbench.attacks.engine.square import Square
from dmlbench.attacks.engine.targets import random_start
from dmlbench.attacks.square import SHARE
from dmlbench.attacks.top1 import CROCE, HELP, TopOneAttack, TopOneGoal
from dmlbench.common.hashing import derived_seed
from dmlbench.common.lazy import np, torch
from dmlbench.core.flags import Flag, black_box
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter

STAGES = ("margin", "dlr", "knn")  # shift broke nothing that these had left, on any model measured
BUDGET = 200  # forward passes of the Square Attack
BY_SQUARE = "Top1:Square"
AGAIN, AGAIN_SQUARED = "square_by_other_draws", "square_by_other_draws_squared"  # findings


@dataclass(frozen=True)
class StackGoal(TopOneGoal):
    """The loss of a stage, with R@1 and what Square took of it as its outcome."""

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        """R@1, and 0 as what Square took, which ``e`` does not tell (``TopOneStack.read`` does)."""
        right = self.first(e)
        return {self.column: right, BY_SQUARE: 0 * right}


@dataclass(frozen=True)
class Stacked(Perturbed):
    """With the points of R@1 that the Square Attack took from each query, (B,) float64.

    Attributes:
        by_square: by the draws that its images were kept by.
        again: by other draws of a randomised network; else None.
    """

    by_square: torch.Tensor
    again: torch.Tensor | None


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

    norm: Literal["linf"] = parameter(
        "linf",
        "what eps bounds: the change of every pixel, as Square knows no other (margin, dlr and knn "
        "do)",
        late=True,
    )

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
        return StackGoal(**vars(margin))

    def goal_of_restart(self, goal: StackGoal, restart: int) -> StackGoal:
        """With other starts of dlr and knn, and other squares, in every restart but the first."""
        return replace(goal, seed=derived_seed(goal.seed, "restart", restart)) if restart else goal

    @property
    def version(self) -> int:
        """The card's version, plus 2 with several restarts.

        In the first version the starts of dlr and knn, and the squares, were the same in each; in
        the second, dlr and knn of the first restart began where the margin of others did.
        """
        return super().version + 2 * (self.restarts > 1)

    def flags(
        self, outcomes: Mapping[str, np.ndarray[Any, Any]], findings: Mapping[str, Any]
    ) -> list[Flag]:
        """A flag where Square broke what the gradient had left."""
        took = outcomes[BY_SQUARE]
        if AGAIN not in findings:
            return black_box(float(np.nanmean(took)))
        share, queries = findings[AGAIN], int((~np.isnan(took)).sum())
        variance = max(0.0, findings[AGAIN_SQUARED] - share**2)
        return black_box(share, math.sqrt(variance / (queries - 1)) if queries > 1 else math.inf)

    def observe(self, goal: StackGoal, perturbed: Perturbed) -> Outcomes:
        """Of a randomised network, what Square took by other draws, and the square of that."""
        assert isinstance(perturbed, Stacked)
        again = perturbed.again
        return {} if again is None else {AGAIN: again, AGAIN_SQUARED: again**2}

    def read(
        self, goal: StackGoal, perturbed: Perturbed, after: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """R@1, and what Square took of it."""
        assert isinstance(perturbed, Stacked)
        right = goal.first(after)
        took = perturbed.by_square.masked_fill(right.isnan(), torch.nan)
        return {goal.column: right, BY_SQUARE: took}

    def perturb(
        self,
        search: Search,
        embed: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        goal: StackGoal,
        start: torch.Tensor | None,
    ) -> Stacked:
        """The margin from ``start``, the others from random places in the ball, then Square.

        Of a randomised network the image of a stage is kept where it lowers the mean R@1 over
        draws, or leaves it as it is.
        """
        from dmlbench.compute.randomness import global_seeds

        assert isinstance(search, Optimizer)

        def right(part: StackGoal, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return expectation(search.draws, lambda: part.first(embed(x)))

        found = search.run(embed, images, goal, start)
        found = replace(found, full_passes=found.full_passes * len(STAGES))
        held = right(goal, found.images)
        for stage, loss in enumerate(STAGES[1:], 1):
            left = (held > 0).nonzero()[:, 0]
            if not len(left):
                break
            part = replace(goal.take(left), name=loss)
            # behind the numbers of restarts, whose starts are drawn from the first one's seed
            number = stage + max(self.restarts - 1, 0)
            begin = random_start(images[left], self.eps or 0, part.index, part.seed, number)
            other = search.run(embed, images[left], part, begin)
            found, held = _better(found, held, left, other, right(part, other.images))
        white, before, left = found, held, (held > 0).nonzero()[:, 0]
        if len(left):
            part = goal.take(left)
            square = Square(self.eps or 0, BUDGET, SHARE, bits=self.bits)
            shown = square.run(embed, images[left], part.ranked())
            after = right(part, shown.images).masked_fill(shown.until < 0, torch.inf)
            found, held = _better(found, held, left, shown, after)
        took, again = before - held, None
        if search.draws > 1:
            moved = (found.images != white.images).flatten(1).any(dim=1).nonzero()[:, 0]
            again, part = 0 * took, goal.take(moved)
            drawn = derived_seed(goal.seed, AGAIN, *goal.index[:1].tolist())
            with global_seeds(drawn, images.device):  # later draws are what they would have been
                if len(moved):
                    without, its = (right(part, x.images[moved]) for x in (white, found))
                    again[moved] = without - its
        found = replace(found, full_forward_passes=BUDGET * len(images))
        return Stacked(**vars(found), by_square=took, again=again)

    def _last(self, search: Search, goal: StackGoal, perturbed: Perturbed) -> Outcomes:
        """R@1 of the last iterate; what Square took is no matter of iterates."""
        last = super()._last(search, goal, perturbed)
        return {name: value for name, value in last.items() if name != BY_SQUARE}

    def _worse(self, a: Attacked, b: Attacked) -> Attacked:
        """A query that the gradient breaks from one start is not Square's of another."""
        merged = super()._worse(a, b)
        white = torch.zeros_like(a.outcomes[BY_SQUARE], dtype=torch.bool)
        for one in (a, b):
            white |= (one.outcomes["Top1"] == 0) & (one.outcomes[BY_SQUARE] == 0)
        for took in (merged.outcomes[BY_SQUARE], *merged.observed.values()):
            took[white] = 0
        return merged


def _better(
    found: Perturbed, held: torch.Tensor, rows: torch.Tensor, other: Perturbed, after: torch.Tensor
) -> tuple[Perturbed, torch.Tensor]:
    """Keep, for each query that was searched again, the image with the lower R@1.

    Args:
        found: the images of all queries so far.
        held: (B,) R@1 of each with its image in percent, as a mean over draws.
        rows: (b,) the queries that were searched again.
        other: the images that this search found.
        after: (b,) R@1 with them. They are kept where it is not above ``held``.

    Returns:
        ``found`` and ``held`` with what is better.
    """
    before, known = held[rows], found.images[rows]
    lower = after <= before
    kept = torch.where(lower.view(-1, 1, 1, 1), other.images, known)
    held = held.index_copy(0, rows, torch.where(lower, after, before))
    return found.replaced(rows, replace(other, images=kept)), held
