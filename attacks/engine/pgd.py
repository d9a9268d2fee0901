"""Projected gradient descent (Madry et al., ICLR 2018) in an L-infinity or L2 ball.

    x <- Proj(x - alpha d),     d = sign(dL/dx) in L-infinity, dL/dx / |dL/dx|_2 in L2

Proj is onto the ball of radius eps around the clean image, and [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

from dmlbench.attacks.engine.ball import Ball
from dmlbench.attacks.engine.optimizer import Iterate, Optimizer
from dmlbench.common.lazy import torch


@dataclass(frozen=True)
class PGD(Optimizer[Iterate]):
    """``steps`` steps of ``alpha`` in a ball of radius ``eps``.

    With steps = 1 and alpha = eps this is FGSM.
    """

    eps: float | torch.Tensor
    alpha: float
    steps: int
    active_set: bool = True
    draws: int = 1
    bits: int = 32
    norm: str = "linf"

    def begin(self, x: torch.Tensor, ball: Ball) -> Iterate:
        """Nothing but the images."""
        return Iterate(x, ball)

    def step(
        self, now: Iterate, loss: torch.Tensor, dx: torch.Tensor, live: torch.Tensor, number: int
    ) -> Iterate:
        """A step against the gradient, projected."""
        now.ball.project_(now.x.sub_(now.ball.direction(dx), alpha=self.alpha))
        return now
