"""The pass through several noisy copies and its gradient, one copy's graph in memory at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dmlbench.attacks.engine.optimizer import through

if TYPE_CHECKING:
    from dmlbench.attacks.engine.smoothing import MeanOverNoise


class MeanPass(torch.autograd.Function):
    """The pass of ``MeanOverNoise`` and its gradient."""

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, mean: MeanOverNoise) -> torch.Tensor:
        """(B, C, H, W) images -> (B, D) mean embeddings."""
        ctx.mean = mean
        ctx.save_for_backward(images)
        parts = [mean.embed(images + z) / len(mean.noise) for z in mean.noise]
        return torch.stack(parts).sum(0)

    @staticmethod
    def backward(ctx: Any, de: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradient in the images, for ``de`` (B, D) in the means."""
        (images,) = ctx.saved_tensors
        total, mean = torch.zeros_like(images), ctx.mean
        for z in mean.noise:
            with torch.enable_grad():
                x = (images + z).detach().requires_grad_(True)
                e = mean.embed(x)
            total += through(e, x, de / len(mean.noise))
        return total, None
