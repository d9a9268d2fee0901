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

from dmlbench.compute.embedding import EmbeddingModel

WORTH = 0.9  # replayed time over launched time, below which replaying is used
TRIES = 5
TOLERANCE = 1e-4  # of replayed embeddings and gradients, against launched ones


class Replayed(nn.Module):
    """A frozen model whose passes over up to ``len(sample)`` images are replayed.

    Args:
        model: in eval mode, no parameter differentiated.
        sample: (B, C, H, W) images on its GPU; smaller batches are padded to B (a launch is
            what costs, and samples that have left a batch still take part), larger ones launched.

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
        # other images than the recorded ones: what was not recorded would stay as it was
        other = 1 - sample
        for replayed, launched in zip(_passes(self, other), _passes(model, other), strict=True):
            if not torch.allclose(replayed, launched, rtol=TOLERANCE, atol=TOLERANCE):
                raise RuntimeError("replayed embeddings or gradients differ from launched ones")

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
        with torch.cuda.device(sample.device):
            replayed = Replayed(model, sample)
            faster = _seconds(replayed, sample) < WORTH * _seconds(model, sample)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return model  # what fills a GPU is not bound by launches
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        warn(f"kernels are launched one by one, as they cannot be recorded: {reason}")
        return model
    return replayed if faster else model


def _passes(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings, and a gradient in the images."""
    x = images.clone().requires_grad_()
    e = model(x)
    return e.detach(), torch.autograd.grad(e, x, torch.ones_like(e))[0]


def _seconds(model: nn.Module, sample: torch.Tensor) -> float:
    """The least time of a forward pass and the gradient in the images."""
    found = []
    for _ in range(TRIES):
        torch.cuda.synchronize(sample.device)
        begun = time.perf_counter()
        _passes(model, sample)
        torch.cuda.synchronize(sample.device)
        found.append(time.perf_counter() - begun)
    return min(found)
