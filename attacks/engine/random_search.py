"""Random search in an L-infinity ball: the clean image, then uniform noise around it.

    x_t = Proj(x + eps u_t),      u_t uniform in [-1, 1]

The image of least loss is kept (the random search of Zhou et al., ICCV 2021; cdluminate/advorder,
``lib/reorder.py``: ``RandSearch``). Images of more than 32 pixels a side get noise of 32 x 32 (or
fewer) values a channel, each spread over a square, as there.
"""

from __future__ import annotations

from dataclasses import dataclass

from dmlbench.attacks.engine.black_box import BlackBox, Breakable, Known
from dmlbench.attacks.engine.targets import coarse, uniform
from dmlbench.common.lazy import torch


@dataclass(frozen=True)
class Drawn(Known):
    """With what the noise of each query follows from: its number, (b,), and the seed."""

    index: torch.Tensor
    seed: int


@dataclass(frozen=True)
class RandomSearch(BlackBox[Drawn]):
    """The search; nothing is learnt from one image for the next."""

    def begin(self, known: Known, objective: Breakable) -> Drawn:
        """Nothing but the numbers of the queries."""
        return Drawn(**vars(known), index=objective.index, seed=objective.seed)

    def propose(self, now: Drawn, number: int) -> torch.Tensor:
        """The clean image, then noise around it."""
        if number == 0:
            return now.clean.clone()
        u = coarse(uniform, now.index, now.seed, f"random search {number}", now.clean)
        return now.ball.project_(now.clean + self.eps * (2 * u - 1))
