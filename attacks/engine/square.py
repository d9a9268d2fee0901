"""The Square Attack in an L-infinity ball (Andriushchenko et al., ECCV 2020).

The first image shown is x + eps s, with a random sign s for each column of each channel. From then
on a square of the best image so far is changed,

    x' = Proj(x_best + 2 eps s),      s = +-1 in the square, one sign a channel; 0 elsewhere

and x' becomes the best image if its loss is lower. The place of the square is uniform. Its side is
the whole number nearest to sqrt(p H W), at least 1, where the share p of the image falls:
of 10,000 passes p is halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000, and of
another budget after the same shares of it (the published schedule).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dmlbench.attacks.engine.black_box import BlackBox, Breakable, Known
from dmlbench.attacks.engine.targets import uniform
from dmlbench.common.lazy import torch

HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of SCHEDULED passes
SCHEDULED = 10_000


@dataclass(frozen=True)
class Squares(Known):
    """With the random numbers of each query, uniform in [0, 1).

    Attributes:
        stripes: (b, C, 1, W) for the signs of the first image.
        draws: (b, budget, 2 + C) for the place of each square, and its signs.
    """

    stripes: torch.Tensor
    draws: torch.Tensor


@dataclass(frozen=True)
class Square(BlackBox[Squares]):
    """The search; ``p`` is the share of the image that the first squares cover."""

    p: float

    def begin(self, known: Known, objective: Breakable) -> Squares:
        """Draw all squares: those of a query depend on the seed and its index alone."""
        _, channels, _, width = known.clean.shape
        index, seed = objective.index, objective.seed
        stripes = uniform(index, seed, "square stripes", (channels, 1, width))
        draws = uniform(index, seed, "square", (self.budget, 2 + channels))
        return Squares(**vars(known), stripes=stripes, draws=draws)

    def propose(self, now: Squares, number: int) -> torch.Tensor:
        """Stripes, then squares."""
        if number == 0:
            return now.ball.project_(now.clean + self.eps * _signs(now.stripes, now.clean))
        height, width = now.clean.shape[2:]
        h = min(side(self.p, number - 1, self.budget, height * width), height, width)
        draw = now.draws[:, number]
        top, left = ((draw[:, i] * (n - h + 1)).long() for i, n in ((0, height), (1, width)))
        inside = _within(top, h, height)[:, None, :, None] & _within(left, h, width)[:, None, None]
        step = 2 * self.eps * _signs(draw[:, 2:, None, None], now.clean)
        return now.ball.project_(now.best + torch.where(inside, step, 0))


def side(p: float, square: int, budget: int, pixels: int) -> int:
    """The side of the squares in an image of so many ``pixels``, for square 0, 1, ..."""
    place = square * SCHEDULED // budget
    halvings = sum(place > after for after in HALVED_AFTER)
    return max(1, round(math.sqrt(p / 2**halvings * pixels)))


def _signs(uniform: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """+1 or -1, of the type of ``like``."""
    return torch.where(uniform < 0.5, -1.0, 1.0).to(like.dtype)


def _within(begin: torch.Tensor, length: int, size: int) -> torch.Tensor:
    """(b, size) true from ``begin`` (b,) on, ``length`` places long."""
    place = torch.arange(size, device=begin.device)
    return (place >= begin[:, None]) & (place < begin[:, None] + length)
