"""Projected gradient descent (Madry et al., ICLR 2018) in an L-infinity ball.

x <- Proj(x - alpha * sign(dL/dx)),  Proj onto [x0 - eps, x0 + eps] and [0, 1]
"""

from __future__ import annotations

from dataclasses import dataclass

from dmlbench.attacks.engine.optimizer import Ball, Iterate, Optimizer
from dmlbench.common.lazy import torch


@dataclass(frozen=True)
class PGD(Optimizer[Iterate]):
    """``steps`` sign steps of ``alpha`` in a ball of radius ``eps``.

    With steps = 1 and alpha = eps this is FGSM.
    """

    eps: float | torch.Tensor
    alpha: float
    steps: int
    active_set: bool = True
    draws: int = 1
    bits: int = 32

    def begin(self, x: torch.Tensor, ball: Ball) -> Iterate:
        """Nothing but the images."""
        return Iterate(x, ball)

    def step(
        self, now: Iterate, loss: torch.Tensor, dx: torch.Tensor, live: torch.Tensor, number: int
    ) -> Iterate:
        """A sign step, projected."""
        now.ball.project_(now.x.sub_(dx.sign(), alpha=self.alpha))
        return now
