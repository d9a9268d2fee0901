"""The smallest perturbation that breaks each query's top-1, by bisection.

A perturbation stays valid in every larger ball, so the share of queries whose radius is above r
is R@1 in a ball of r, for every r below eps, and falls as r grows. ``Radius`` is the mean of the
radii (the area under that curve up to eps), ``r50`` their median. Both are in 1/255.

The radii that are looked at, in 1/255, are 1/32 and then a factor of sqrt(2) up to 2, and whole
numbers from there on to eps, which is the largest. Those that the bisection visits are searched by
the margin of ``top1``. A search begins at the smallest perturbation that has broken the query so
far, brought into the smaller ball. With bits=8 the radii are whole numbers, and a query is broken
where its image of 8 bits is. A query that is wrong on the clean image has radius 0, one that is
never broken eps. Of a randomised network a query counts as broken where most draws have a wrong
top-1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Self

from dmlbench.attacks.base import ATTACKS, Column
from dmlbench.attacks.engine.apgd import APGD
from dmlbench.attacks.engine.bisection import Bisected, Levels, bisect, rounds
from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.attacks.engine.optimizer import Perturbed, Search, expectation
from dmlbench.attacks.top1 import CROCE, TopOneAttack, TopOneGoal
from dmlbench.common.lazy import torch
from dmlbench.core.protocol import Threat
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter

LEAST, DENSE_UP_TO = 1 / 32, 2  # in 1/255: the first level, and where whole numbers begin
HALF = 50  # percent of the draws of a randomised network; of another the top-1 is right or wrong
STEPS = 50  # of one search, in the suite auto


def levels(eps: float) -> list[float]:
    """The radii that are looked at in a ball of ``eps``, ascending, in 1/255; the last is eps."""
    end = 255 * eps
    count = round(2 * math.log2(DENSE_UP_TO / LEAST))
    dense = [LEAST * 2 ** (i / 2) for i in range(count + 1)]
    whole = [float(n) for n in range(DENSE_UP_TO + 1, math.ceil(end))]
    return [*(level for level in [*dense, *whole] if level < end * (1 - 1e-9)), end]


def levels_of_8_bits(eps: float) -> list[float]:
    """The same for images of 8 bits, which lie whole numbers apart: 1, 2, 3, ..., 255 eps."""
    end = 255 * eps
    return [*(float(n) for n in range(1, math.ceil(end)) if n < end * (1 - 1e-9)), end]


@dataclass(frozen=True)
class RadiusGoal(TopOneGoal):
    """The margin, with the radius as its outcome; ``end`` is the largest one, in 1/255."""

    end: float

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        """The radius if nothing but ``e`` is known: ``end`` where its top-1 is right, else 0.

        The bisection finds a closer one (``Radius.read``).
        """
        return {self.column: self.first(e) / 100 * self.end}


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class Radius(TopOneAttack):
    """The margin attack in balls of many sizes."""

    card = Card("radius", "the smallest eps at which the margin attack breaks each query", CROCE)
    columns = (
        Column(
            "Radius",
            "",
            "higher",
            "The smallest eps, in 1/255, at which the margin attack breaks the top-1; 0 where the "
            "clean top-1 is wrong, the largest eps where it was never broken. The mean is the area "
            "under R@1 as a function of eps, up to the largest. At a median below that, R@1 has "
            "fallen to half.",
            (0, 255),
            median="r50",
            curve="eps in 1/255",
        ),
    )
    loss = "margin"
    auto = "optimizer=apgd, alpha=2 eps; in the suite auto steps=50"

    norm: Literal["linf"] = parameter(
        "linf", "what eps bounds: the change of every pixel, as radii are in 1/255", late=True
    )

    def __post_init__(self) -> None:
        if self.optimizer == "pgd":
            raise ValueError("optimizer must be apgd: the balls of a batch differ in their steps")

    def resolve(self, threat: Threat) -> Self:
        """By APGD in every suite; in the suite auto a search has 50 steps."""
        auto = (self.suite or threat.suite) == "auto"
        steps = self.steps or (STEPS if auto else None)
        return super(Radius, replace(self, steps=steps, optimizer="apgd")).resolve(threat)

    @property
    def most_passes(self) -> int:
        """Those of all rounds."""
        return super().most_passes * rounds(self.levels)

    @property
    def levels(self) -> list[float]:
        """The radii that are looked at, in 1/255; eps must be resolved."""
        return (levels_of_8_bits if self.bits == 8 else levels)(self.eps or 0)

    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> RadiusGoal:
        """The margin."""
        margin = super().goal(gallery, index, seed)
        return RadiusGoal(**vars(margin), end=self.levels[-1])

    def read(
        self, goal: RadiusGoal, perturbed: Perturbed, after: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The radii that the bisection has found; NaN where there is no R@1."""
        assert isinstance(perturbed, Bisected)
        radius = perturbed.radius.double()
        return {goal.column: radius.masked_fill(goal.first(after).isnan(), torch.nan)}

    def perturb(
        self,
        search: Search,
        embed: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        goal: RadiusGoal,
        start: torch.Tensor | None,
    ) -> Bisected:
        """Bisect the levels (``bisection.bisect``)."""
        assert isinstance(search, APGD)  # __post_init__ has seen to it
        radii = torch.tensor([0.0, *self.levels], device=images.device)
        first_step = float(search.alpha) / (self.eps or 1)  # in radii of the ball
        draws = search.draws

        def right(part: RadiusGoal, x: torch.Tensor, number: int) -> torch.Tensor:
            with torch.no_grad():
                return expectation(draws, lambda: part.first(embed(x))) >= HALF

        every = Levels(radii, radii / 255, first_step)
        clean = right(goal, images, 0)
        found = bisect(search, embed, images, goal, every, clean, right, start)
        full = search.steps * rounds(self.levels) * draws
        return replace(found, full_passes=len(images) * full)
