"""The embedding model: input normalisation, the network, and unit length where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dmlbench.common.errors import CellError
from dmlbench.common.text import listed
from dmlbench.compute.device import LARGE
from dmlbench.metrics.distance import Metric

ROWS_PER_THREAD = 8
HALVES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}  # number formats below float32


class EmbeddingModel(nn.Module):
    """A network that maps images in [0, 1] to embeddings.

    Input normalisation is part of the model, so perturbations are measured in [0, 1] pixel space.
    For the metrics N and C the embeddings have unit length.

    Args:
        backbone: maps normalised images (B, C, H, W) to raw embeddings (B, D).
        metric: N, E or C.
        mean, std: of each input channel, for normalisation; empty for none.
        freeze_batch_norm: leave the statistics of batch norm as they are in training.
        same_in_training: True if a batch has the same embeddings in train mode as in eval mode.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        backbone: nn.Module,
        metric: Metric,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        freeze_batch_norm: bool = False,
        same_in_training: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.metric: Metric = metric
        self.use_bfloat16 = False  # True: the backbone computes in bfloat16
        self.freeze_batch_norm = freeze_batch_norm
        self.same_in_training = same_in_training
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> EmbeddingModel:
        """Set train or eval mode; frozen batch norms stay in eval mode."""
        super().train(mode)
        if not mode:
            self.backbone.eval()  # a network may have replaced ``eval`` alone
        if self.freeze_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, C, H, W) in [0, 1] to embeddings (B, D), of unit length for N and C."""
        raw = self.raw(images)
        return raw if self.metric == "E" else nn.functional.normalize(raw, dim=1)

    def raw(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, C, H, W) in [0, 1] to the embeddings (B, D) that the backbone returns.

        Raises:
            CellError: the backbone returns something else than a (B, D) tensor of real numbers.
        """
        if self.mean.numel():
            images = (images - self.mean) / self.std
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.use_bfloat16):
            raw = self.backbone(images)
        if (
            not isinstance(raw, torch.Tensor)
            or raw.ndim != 2
            or len(raw) != len(images)
            or not raw.shape[1]
        ):
            raise CellError(
                f"the network must map {tuple(images.shape)} images to ({len(images)}, D) "
                f"embeddings, got {_form_and_remedy(raw)}"
            )
        if not raw.is_floating_point():
            raise CellError(f"the network must return real numbers as floats, got {raw.dtype}")
        return raw.float() if raw.dtype in HALVES else raw


def _form_and_remedy(output: Any) -> str:
    """The form of what a network returned in place of embeddings, and how to return these."""
    if isinstance(output, torch.Tensor):
        remedy = ": return output.flatten(1)" if output.ndim > 2 else ""
        return f"{tuple(output.shape)}{remedy}"
    name = type(output).__name__
    if isinstance(output, Mapping):
        keys = [repr(key) for key in output] or ["KEY"]
        named = next((key for key in keys if "embed" in key.lower()), keys[0])
        return f"{name} with {listed(keys)}: return the embedding alone, as output[{named}]"
    if isinstance(output, tuple | list):
        return f"{name} of {len(output)}: return the embedding alone, as output[0]"
    return f"{name}: return the embedding alone"


def on_device(model: EmbeddingModel, device: torch.device) -> EmbeddingModel:
    """Move ``model`` to ``device``, in the memory layout that is fast there.

    On a CPU this is "channels last": a step takes a third less time for LeNet and a tenth less
    for C2F2. The results differ from those of the default layout by rounding.
    """
    if device.type != "cpu":
        return model.to(device)
    moved: EmbeddingModel = model.to(device).to(memory_format=torch.channels_last)
    return moved


def embed(model: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Compute ``model(images)`` so that an embedding does not depend on the rest of its batch.

    The last bit matters, because an attack steps by the sign of the gradient, so a changed bit can
    become a whole step. CPU kernels sum in another order for another number of rows. Therefore
    large images pass one by one on a CPU, which costs hardly more than a batch of them, and small
    ones in batches that are never short (``embed_together``). On a GPU the results of different
    batches agree up to rounding.
    """
    if images.device.type != "cpu" or images.shape[-1] < LARGE:
        return embed_together(model, images)
    return torch.cat([model(image) for image in torch.split(images, 1)])


def embed_together(
    model: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor
) -> torch.Tensor:
    """Compute ``model(images)`` in one batch, which is padded on a CPU if it is short.

    The order of summation changes for very few rows per thread only. Small images are therefore
    independent of their batch; large ones up to rounding. Training uses it for both: its batches
    are large.
    """
    short = ROWS_PER_THREAD * max(4, torch.get_num_threads()) - len(images)
    if short <= 0 or images.device.type != "cpu":
        result: torch.Tensor = model(images)
        return result
    padded = torch.cat([images, images[:1].expand(short, *images.shape[1:])])
    result = model(padded)[: len(images)]
    return result


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in eval mode without parameter gradients, within a ``with`` block.

    Afterwards both are as they were before.
    """
    training = [module for module in model.modules() if module.training]
    trainable = [p for p in model.parameters() if p.requires_grad]
    with held(training, trainable):
        yield


def embed_frozen(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """``embed`` in eval mode and without a gradient; afterwards the model is as it was."""
    with torch.no_grad(), frozen(model):
        return embed(model, images)


@contextmanager
def held(training: Sequence[nn.Module], trainable: Sequence[nn.Parameter]) -> Iterator[None]:
    """Put these modules in eval mode, these parameters without gradient, within a ``with`` block.

    Pass only modules in train mode and parameters that require a gradient: afterwards all of them
    are so again.
    """
    for module in training:
        module.training = False
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for p in trainable:
            p.requires_grad_(True)
