"""The embedding model: input normalisation, backbone, geometry of the metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from dmlbench.common.errors import CellError
from dmlbench.metrics.distance import Metric

ROWS_PER_THREAD = 8


class EmbeddingModel(nn.Module):
    """Images in [0, 1] -> embeddings.

    Normalisation is inside, so perturbations are measured in [0, 1] pixel space. For the metrics
    N and C the output has unit length.
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
        steady: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.metric: Metric = metric
        self.reduced = False  # bfloat16 inside the backbone
        self.freeze_batch_norm = freeze_batch_norm
        self.steady = steady  # train mode embeds as eval mode does
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> EmbeddingModel:
        """As every module; frozen batch norm keeps its statistics."""
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) images in [0, 1] -> (B, D) embeddings."""
        if self.mean.numel():
            images = (images - self.mean) / self.std
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.reduced):
            raw = self.backbone(images)
        shape = tuple(raw.shape) if isinstance(raw, torch.Tensor) else type(raw).__name__
        if not isinstance(raw, torch.Tensor) or raw.ndim != 2 or len(raw) != len(images):
            raise CellError(
                f"the network must map {tuple(images.shape)} images to ({len(images)}, D) "
                f"embeddings, got {shape}"
            )
        raw = raw.float() if self.reduced else raw
        return raw if self.metric == "E" else nn.functional.normalize(raw, dim=1)


def place(model: EmbeddingModel, device: torch.device) -> EmbeddingModel:
    """``model`` on ``device``, in the memory layout that is fast there.

    On a CPU channels last takes a third off LeNet's step and a tenth off C2F2's; numbers differ
    from the default layout's by rounding.
    """
    if device.type != "cpu":
        return model.to(device)
    moved: EmbeddingModel = model.to(memory_format=torch.channels_last)
    return moved


def embed(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """``model(images)`` with the same bits for an image whatever the batch around it.

    CPU kernels change with the number of rows a thread gets, and with them the last bit, once
    there are very few; short batches are therefore padded. Sign steps turn a last bit into a
    whole step, so this is what makes batch size and the active set exact on a CPU. On a GPU
    they agree to rounding.
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
    """Eval mode and no parameter gradients inside; both as they were afterwards."""
    training = [module for module in model.modules() if module.training]
    trainable = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for p in trainable:
            p.requires_grad_(True)
