"""Goals whose loss a few lines of a test can follow, for the optimizers of attacks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dmlbench.attacks.base import RowWise


@dataclass(frozen=True)
class Hinge(RowWise):
    """max(0, <e, target> - offset): saturates for some samples and not for others."""

    target: torch.Tensor
    offset: torch.Tensor

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        loss = ((e * self.target).sum(1) - self.offset).relu()
        return loss, (loss > 0)[:, None] * self.target


@dataclass(frozen=True)
class Wave(RowWise):
    """sum of cos(9 e * target): bumpy, so that steps overshoot and are halved; never done."""

    target: torch.Tensor

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        angle = 9 * e * self.target
        return angle.cos().sum(1), -9 * self.target * angle.sin()


Goal = Hinge | Wave
SAMPLES = 10
