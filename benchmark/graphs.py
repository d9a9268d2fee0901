"""CUDA graphs of a frozen network, where it is bound by launching kernels and not by running them.

A small network on a large GPU spends an attack step waiting for its kernels to be launched, one
after another. Recorded once and replayed, forward pass and gradient in the images cost one launch
each. The kernels are the same ones, so this changes no number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dmlbench.embedding import EmbeddingModel

WORTH = 0.9  # replayed time over launched time, below which replaying is used
TRIES = 5
TOLERANCE = 1e-4  # of the first replayed embeddings, against launched ones


class Replayed(nn.Module):
    """A frozen model whose passes over up to ``len(sample)`` images are replayed.

    Args:
        model: in eval mode, no parameter differentiated.
        sample: (B, C, H, W) images on its GPU; smaller batches are padded to B, larger ones
            launched.

    Raises:
        RuntimeError: its passes cannot be recorded, or give something else when replayed.
    """

    def __init__(self, model: EmbeddingModel, sample: torch.Tensor) -> None:
        super().__init__()
        self.model, self.metric = model, model.metric
        self._shape = sample.shape
        example = sample.clone().requires_grad_()
        record: Any = torch.cuda.make_graphed_callables
        self._replay = record(lambda images: model(images), (example,))
        with torch.no_grad():
            if not torch.allclose(self(sample), model(sample), rtol=0, atol=TOLERANCE):
                raise RuntimeError("replayed embeddings differ from launched ones")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) images in [0, 1] -> (B, D) embeddings."""
        missing = self._shape[0] - len(images)
        if missing < 0:
            launched: torch.Tensor = self.model(images)
            return launched
        if missing:
            images = torch.cat([images, images.new_zeros(missing, *self._shape[1:])])
        # the next replay overwrites what this one returns
        e: torch.Tensor = self._replay(images)[: self._shape[0] - missing].clone()
        return e


def fastest(model: EmbeddingModel, sample: torch.Tensor, warn: Callable[[str], None]) -> nn.Module:
    """``model``, or its replayed form where that is faster on batches like ``sample``."""
    if sample.device.type != "cuda":
        return model
    try:
        replayed = Replayed(model, sample)
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        warn(f"kernels are launched one by one, as they cannot be recorded: {reason}")
        return model
    return replayed if _seconds(replayed, sample) < WORTH * _seconds(model, sample) else model


def _seconds(model: nn.Module, sample: torch.Tensor) -> float:
    """The least time of a forward pass and the gradient in the images."""
    found = []
    for _ in range(TRIES):
        torch.cuda.synchronize(sample.device)
        begun = time.perf_counter()
        x = sample.clone().requires_grad_()
        e = model(x)
        torch.autograd.grad(e, x, torch.ones_like(e))
        torch.cuda.synchronize(sample.device)
        found.append(time.perf_counter() - begun)
    return min(found)
