"""APGD: steps with momentum whose size adapts to each sample (Croce and Hein, ICML 2020).

    z  = Proj(x - step * d),    d = sign(dL/dx) in L-infinity, dL/dx / |dL/dx|_2 in L2
    x' = Proj(x + 0.75 (z - x) + 0.25 (x - x_before)),      x' = z in the first step

The step begins at 2 eps. At a checkpoint it is halved, and the search returns to the best iterate,
where since the last checkpoint at most 75% of the iterates improved on the one before, or where
the step was kept at the last checkpoint and the best loss has not improved since. Of T steps the
checkpoints are at ceil(p T) with p = 0.22, 0.41, 0.57, ...: each gap is 0.03 shorter than the one
before and at least 0.06. (The published code rounds the gaps instead; at T = 100 both agree.)

The best iterate by loss is the result, where PGD takes the last one.

Of a sample that is done (dL/de is zero) the best iterate is kept from then on, whether it has left
the batch or not, so the active set is exact (but for a randomised network, see ``optimizer``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from dmlbench.attacks.engine.ball import Ball, wide
from dmlbench.attacks.engine.optimizer import Iterate, Optimizer
from dmlbench.common.lazy import torch

MOMENTUM = 0.75  # weight of the new step; the rest goes to the direction of the last one
ENOUGH = 0.75  # share of iterates that must improve for the step to be kept
FIRST_GAP, GAP_DECREASE, LEAST_GAP = 22, 3, 6  # between checkpoints, in percent of the steps


@dataclass(frozen=True)
class AdaptiveIterate(Iterate):
    """The samples that are still in the batch, between two steps.

    Attributes:
        before: the images before the last step.
        size: (b, 1, ...) size of the next step.
        loss: (b,) at the place that the last step began from.
        best, best_direction, best_loss: the images of least loss so far, and the direction
            of the gradient there.
        checked_loss: (b,) the best loss at the last checkpoint.
        improved: (b,) iterates since then whose loss was below that of the one before.
        halved: (b,) whether the step was halved then.
        live: (b,) whether the search goes on; false once dL/de was zero.
    """

    before: torch.Tensor
    size: torch.Tensor
    loss: torch.Tensor
    best: torch.Tensor
    best_direction: torch.Tensor
    best_loss: torch.Tensor
    checked_loss: torch.Tensor
    improved: torch.Tensor
    halved: torch.Tensor
    live: torch.Tensor

    @property
    def result(self) -> torch.Tensor:
        """The best images."""
        return self.best


@dataclass(frozen=True)
class APGD(Optimizer[AdaptiveIterate]):
    """``steps`` adaptive steps in a ball of radius ``eps``; the first has the size ``alpha``.

    Both are one number, or (B,) for each sample. The paper's ``alpha`` is 2 eps.
    """

    judges_last: ClassVar[bool] = True

    eps: float | torch.Tensor
    alpha: float | torch.Tensor
    steps: int
    active_set: bool = True
    draws: int = 1
    bits: int = 32
    norm: str = "linf"

    def begin(self, x: torch.Tensor, ball: Ball) -> AdaptiveIterate:
        """Nothing is known of ``x`` yet."""
        size = x.new_ones(len(x)) * torch.as_tensor(self.alpha, device=x.device)
        unknown = x.new_full((len(x),), torch.inf, dtype=torch.float64)
        no = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return AdaptiveIterate(
            x=x,
            ball=ball,
            before=x,
            size=wide(size, x),
            loss=-unknown,
            best=x.clone(),
            best_direction=torch.zeros_like(x),
            best_loss=unknown,
            checked_loss=unknown,
            improved=no.long(),
            halved=no,
            live=~no,
        )

    def step(
        self,
        now: AdaptiveIterate,
        loss: torch.Tensor,
        dx: torch.Tensor,
        live: torch.Tensor,
        number: int,
    ) -> AdaptiveIterate:
        """Take in what was found at ``now.x``, look back at a checkpoint, and move on."""
        direction = now.ball.direction(dx)
        now = replace(_seen(now, loss, direction), live=now.live & live)
        x, size = now.x, now.size
        gap = schedule(self.steps).get(number)
        if gap is not None:
            kept_in_vain = ~now.halved & (now.best_loss == now.checked_loss)
            halved = (now.improved <= ENOUGH * gap) | kept_in_vain
            back = wide(halved, x)
            x, size = torch.where(back, now.best, x), torch.where(back, size / 2, size)
            direction = torch.where(back, now.best_direction, direction)
            now = replace(
                now,
                halved=halved,
                loss=torch.where(halved, now.best_loss, now.loss),
                checked_loss=now.best_loss,
                improved=torch.zeros_like(now.improved),
            )
        new = now.ball.project_(torch.addcmul(x, direction, size, value=-1))
        if number > 0:
            new.sub_(x).mul_(MOMENTUM).add_(x - now.before, alpha=1 - MOMENTUM).add_(x)
            now.ball.project_(new)
        return replace(now, x=new, before=x, size=size)

    def judge(self, now: AdaptiveIterate, loss: torch.Tensor) -> AdaptiveIterate:
        """The last images count if they are the best."""
        return _seen(now, loss, now.best_direction)


def schedule(steps: int) -> dict[int, int]:
    """The checkpoints of so many steps: steps made there -> steps since the last checkpoint."""
    gap, share, last, found = FIRST_GAP, FIRST_GAP, 0, {}
    while share < 100:
        place = -(-share * steps // 100)
        if place > last:
            found[place], last = place - last, place
        gap = max(gap - GAP_DECREASE, LEAST_GAP)
        share += gap
    return found


def _seen(now: AdaptiveIterate, loss: torch.Tensor, direction: torch.Tensor) -> AdaptiveIterate:
    """With the loss at ``now.x`` taken in; of a sample that is done nothing more is."""
    loss = loss.double()
    better = now.live & (loss < now.best_loss)
    moved = wide(better, now.x)
    return replace(
        now,
        loss=loss,
        improved=now.improved + (loss < now.loss),
        best=torch.where(moved, now.x, now.best),
        best_direction=torch.where(moved, direction, now.best_direction),
        best_loss=torch.where(better, loss, now.best_loss),
    )
