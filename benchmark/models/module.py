"""A network in memory as a model that can be measured."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dmlbench.common.errors import UserError
from dmlbench.common.lazy import torch
from dmlbench.core import sources
from dmlbench.core.registry import Card
from dmlbench.metrics.distance import Metric
from dmlbench.models.base import Model, copied

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True, eq=False)
class ModuleModel(Model):
    """A ``torch.nn.Module`` that is there already; it is copied, and never changed.

    Attributes:
        module: maps images (B, C, H, W) in [0, 1] to embeddings (B, D).
        mean, std: of each channel, to normalise the images before ``module``; empty: it does so
            itself, or needs no normalisation.
        name: of the network in tables; empty: the module's class.
    """

    module: Any  # nn.Module; its type would import torch where hints are resolved
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    name: str = ""

    @property
    def card(self) -> Card:  # type: ignore[override]  # one class stands for every module
        """A card with the name in tables."""
        return Card(self.name or type(self.module).__name__, "a network in memory")

    @property
    def facts(self) -> dict[str, Any]:
        """The architecture as PyTorch prints it, and a digest of the source of its classes."""
        own = type(self.module)
        parts = sorted(
            {type(m) for m in self.module.modules()} - {own}, key=lambda c: c.__qualname__
        )
        return super().facts | {
            "architecture": hashlib.sha256(repr(self.module).encode()).hexdigest(),
            "source": sources.digest(own, *parts),
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @property
    def digest(self) -> str:
        """SHA-256 of names, shapes and values of the module's parameters and buffers."""
        digest = hashlib.sha256()
        for name, value in self.module.state_dict().items():
            if isinstance(value, torch.Tensor):
                dense = value.detach().cpu().contiguous()
                digest.update(f"{name} {dense.dtype} {tuple(dense.shape)};".encode())
                digest.update(dense.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def backbone(self, channels: int, size: int) -> nn.Module:
        """A copy of the module; UserError if it cannot be copied."""
        return copied(self.module, self.card.name)

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """As it was given."""
        return self.mean, self.std


def module_model(
    module: nn.Module,
    metric: Metric | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    name: str = "",
) -> ModuleModel:
    """``module`` with the metric its embeddings are compared with (N by default).

    An ``EmbeddingModel``, as ``load_model`` gives it, brings metric and normalisation along.

    Raises:
        UserError: they are given for such a model again, or only one of mean and std is.
    """
    from dmlbench.compute.embedding import EmbeddingModel

    if isinstance(module, EmbeddingModel):
        if metric not in (None, module.metric) or mean or std:
            raise UserError("this model has its own metric and normalisation: leave them out")
        own = [tuple(buffer.flatten().tolist()) for buffer in (module.mean, module.std)]
        return ModuleModel(
            module=module.backbone, metric=module.metric, mean=own[0], std=own[1], name=name
        )
    if bool(mean) != bool(std):
        raise UserError("mean and std go together: one number a channel each")
    return ModuleModel(
        module=module, metric=metric or "N", mean=tuple(mean), std=tuple(std), name=name
    )
