"""CUDA graphs of a frozen network: its kernels are recorded once and replayed together.

A small network on a large GPU spends an attack step waiting for its kernels to be launched, one
after another. Replayed, the forward pass and the gradient in the images cost one launch each.

The rule, the same in every run: passes are replayed on a CUDA device, for images of at most 64 x 64
pixels (the kernels of larger ones take longer than their launch), and only if they can be recorded
and give the same bits as launched kernels on a batch that was not recorded. Each cell says in its
findings (``cuda_graphs``) whether they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from dmlbench.common.text import first_line
from dmlbench.compute.embedding import EmbeddingModel

LARGEST = 64  # pixels a side


class Replayed(nn.Module):
    """A frozen model whose passes over up to ``len(sample)`` images are replayed.

    Args:
        model: in eval mode, no parameter differentiated.
        sample: (B, C, H, W) images on its GPU. Smaller batches are padded to B images: a launch is
            what costs, not an image. Larger ones are launched.

    Raises:
        RuntimeError: the passes cannot be recorded, or replaying them gives other bits.
    """

    def __init__(self, model: EmbeddingModel, sample: torch.Tensor) -> None:
        super().__init__()
        self.model, self.metric = model, model.metric
        self._shape = sample.shape
        example = sample.clone().requires_grad_()
        record: Any = torch.cuda.make_graphed_callables
        self._replay = record(lambda images: model(images), (example,))
        # other images than the recorded ones, so that work that was not recorded shows
        other = 1 - sample
        for replayed, launched in zip(_passes(self, other), _passes(model, other), strict=True):
            if not torch.equal(replayed, launched):
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


def replayed_or_launched(
    model: EmbeddingModel, sample: torch.Tensor, warn: Callable[[str], None]
) -> nn.Module:
    """``model`` as ``Replayed`` where the rule of this module allows it, else ``model`` itself.

    Args:
        model: frozen, on the device of ``sample``.
        sample: (B, C, H, W) images, as large a batch as there will be.
        warn: called with a line if the passes of small images are launched all the same.
    """
    if not bound_by_launches(sample.device, sample.shape):
        return model
    try:
        with torch.cuda.device(sample.device), torch.enable_grad():  # the caller may need none
            return Replayed(model, sample)
    except RuntimeError as error:  # out of memory is one too
        reason = first_line(error)
        torch.cuda.empty_cache()
        warn(f"kernels are launched one by one, as they cannot be recorded: {reason}")
        return model


def bound_by_launches(device: torch.device, shape: Sequence[int]) -> bool:
    """The first half of the rule: True for images (B, C, H, W) that are small, and on a GPU."""
    return device.type == "cuda" and max(shape[2:]) <= LARGEST


def _passes(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of the images, and the gradient of their sum in the images."""
    x = images.clone().requires_grad_()
    e = model(x)
    return e.detach(), torch.autograd.grad(e, x, torch.ones_like(e))[0]
