"""A stand-in for PyTorch's recorder of CUDA graphs, on any machine."""

from __future__ import annotations

from collections.abc import Callable

import torch


def recorder(images: int) -> Callable[..., Callable[[torch.Tensor], torch.Tensor]]:
    """As ``make_graphed_callables``: one size only, and each call overwrites the last result."""

    class Static(torch.autograd.Function):
        @staticmethod
        def forward(ctx, function, buffer, x):  # type: ignore[no-untyped-def]
            assert len(x) == images
            with torch.enable_grad():
                ctx.x = x.detach().requires_grad_()
                ctx.e = function(ctx.x)
            buffer.copy_(ctx.e.detach())
            return buffer.detach()

        @staticmethod
        def backward(ctx, gradient):  # type: ignore[no-untyped-def]
            return None, None, torch.autograd.grad(ctx.e, ctx.x, gradient)[0]

    def make(function, examples):  # type: ignore[no-untyped-def]
        buffer = function(examples[0]).detach()
        return lambda x: Static.apply(function, buffer, x)

    return make
