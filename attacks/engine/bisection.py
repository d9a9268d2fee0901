"""The smallest ball in which a search breaks each query, by bisection of given radii."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dmlbench.attacks.engine.apgd import APGD
from dmlbench.attacks.engine.optimizer import Perturbed
from dmlbench.common.lazy import torch

LEVEL_ROUNDING = 1e-6  # of a level, as a share of it: levels are kept in float32


@dataclass(frozen=True)
class Bisected(Perturbed):
    """With the radius of each query, (B,) as a level."""

    radius: torch.Tensor


@dataclass(frozen=True)
class Levels:
    """The balls that are looked at.

    Attributes:
        shown: (n,) the radii as they are reported, ascending, from 0 on; the last is the largest.
        eps: (n,) the same in pixel space.
        first_step: first step of a search over its radius.
    """

    shown: torch.Tensor
    eps: torch.Tensor
    first_step: float


def bisect(
    search: APGD,
    embed: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    goal: Any,
    levels: Levels,
    clean_right: torch.Tensor,
    right: Callable[[Any, torch.Tensor, int], torch.Tensor],
    start: torch.Tensor | None = None,
) -> Bisected:
    """Bisect between the largest ball that held and the smallest that broke the query.

    Both are places among all levels, from 0; the place after the last stands for none. The first
    search is in the largest ball. A search begins at the smallest perturbation that has broken the
    query so far. A query that is never broken gets the last level, one that is wrong on the clean
    image gets 0.

    Args:
        search: its radius and first step are replaced.
        embed: images (b, ...) -> embeddings (b, D), as the searches see them.
        images: (B, C, H, W) clean images.
        goal: the loss.
        levels: the balls.
        clean_right: (B,) bool, queries whose clean top-1 is right.
        right: (goal of b queries, their images, number of the round from 0) -> (b,) bool, whether
            the top-1 is still right.
        start: where the first search begins; None: at the clean images.
    """
    end = len(levels.shown)
    held = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    broken = torch.where(clean_right, end, held)
    best, begin, passes = images.clone(), images if start is None else start, 0
    last, flat = images.new_empty(0), torch.zeros_like(clean_right)
    for number in range(rounds(levels.shown[1:].tolist())):
        rows = (broken - held > 1).nonzero()[:, 0]
        if not len(rows):
            break
        level = (held + broken)[rows] // 2 if number else broken[rows] - 1
        ball = levels.eps[level]
        part = goal.take(rows)
        found = replace(search, eps=ball, alpha=levels.first_step * ball).run(
            embed, images[rows], part, begin[rows]
        )
        fell = ~right(part, found.images, number)
        broken[rows] = torch.where(fell, level, broken[rows])
        held[rows] = torch.where(fell, held[rows], level)
        best[rows[fell]] = found.images[fell]
        passes, begin = passes + found.passes, best
        if number == 0:
            last = found.last_embeddings.new_zeros(len(images), *found.last_embeddings.shape[1:])
            flat[rows] = found.flat_start
        last[rows] = found.last_embeddings
    radius = levels.shown[broken.clamp(max=end - 1)]
    return Bisected(best, passes, 0, last, flat, radius)


def rounds(radii: list[float]) -> int:
    """Searches that a query takes at most: the largest ball, then a bisection of the others."""
    return 1 + math.ceil(math.log2(len(radii)))
