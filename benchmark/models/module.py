"""A network in memory as a model that can be measured."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dmlbench.common.errors import UserError
from dmlbench.common.hashing import content_sha256
from dmlbench.common.lazy import torch
from dmlbench.core import sources
from dmlbench.core.registry import Card
from dmlbench.metrics.distance import METRICS, Metric
from dmlbench.models.attributes import Attributes, attributes_of, tensor_bytes
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
        made_by: digest of the source of the function that built it, where that is the user's.
    """

    module: Any  # nn.Module; its type would import torch where hints are resolved
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    name: str = ""
    made_by: str | None = None

    @cached_property
    def attributes(self) -> Attributes:
        """The values that its state dict does not have; of a compiled module, the original's."""
        return attributes_of(getattr(self.module, "_orig_mod", self.module))

    @property
    def card(self) -> Card:  # type: ignore[override]  # one class stands for every module
        """A card with the name in tables."""
        return Card(self.name or _class_name(self.module), "a network in memory")

    @property
    def facts(self) -> dict[str, Any]:
        """The architecture as PyTorch prints it, and a digest of the source of its code."""
        own = type(self.module)
        classes = {type(m) for m in self.module.modules()} - {own}
        parts = sorted({*classes, *self.attributes.code}, key=lambda one: one.__qualname__)
        made_by = {} if self.made_by is None else {"made_by": self.made_by}
        script = isinstance(self.module, torch.jit.ScriptModule)  # its attributes say it all
        printed = "TorchScript" if script else repr(self.module)
        return super().facts | {
            "architecture": hashlib.sha256(printed.encode()).hexdigest(),
            "source": None if script else sources.digest(own, *parts),
            "mean": list(self.mean),
            "std": list(self.std),
            **made_by,
        }

    @property
    def weights_digest(self) -> str:
        """SHA-256 of names, shapes and values of the module's state dict.

        Raises:
            UserError: a tensor has no values, as of a lazy module or on ``meta``, or is sparse.
        """
        digest = hashlib.sha256()
        for name, value in self.module.state_dict().items():
            if isinstance(value, torch.Tensor):
                try:
                    form, content = tensor_bytes(value)
                except (RuntimeError, TypeError, ValueError):
                    raise UserError(
                        f"model {self.card.name}: {name} is sparse or has no values: run a lazy "
                        "module once, load weights into one on meta, and make sparse tensors dense"
                    ) from None
                digest.update(f"{name} {form};".encode())
                digest.update(content)
        return digest.hexdigest()

    @property
    def digest(self) -> str:
        """``weights_digest``, and a hash of the attributes with it where the module has any.

        Of those that cannot be compared (a hook, a lambda) it has the names.
        """
        known, unknown = self.attributes.known, self.attributes.unknown
        if not known and not unknown:
            return self.weights_digest
        facts = {"weights": self.weights_digest, "attributes": known}
        return content_sha256(facts | ({"unknown": unknown} if unknown else {}))

    def backbone(self, channels: int, size: int) -> nn.Module:
        """A copy of the module.

        Raises:
            UserError: it cannot be copied, or mean and std are of another number of channels.
        """
        if self.mean and not len(self.mean) == len(self.std) == channels:
            counts = f"{len(self.mean)} and {len(self.std)}"
            raise UserError(
                f"mean and std must have a number for each channel: they have {counts}, the images "
                f"{channels} channels"
            )
        network: nn.Module = copied(self.module, self.card.name)
        return network

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

    An ``EmbeddingModel``, as ``load_model`` gives it, brings metric and normalisation along, also
    if it is compiled or in a ``DataParallel``.

    Raises:
        UserError: they are given for such a model again, or only one of mean and std is, or they
            are not those of pixels in [0, 1].
    """
    from dmlbench.compute.embedding import EmbeddingModel

    inner = _unwrapped(module)
    if isinstance(inner, EmbeddingModel):
        if metric not in (None, inner.metric) or mean or std:
            raise UserError("this model has its own metric and normalisation: leave them out")
        own = [tuple(buffer.flatten().tolist()) for buffer in (inner.mean, inner.std)]
        return ModuleModel(
            module=inner.backbone, metric=inner.metric, mean=own[0], std=own[1], name=name
        )
    if bool(mean) != bool(std):
        raise UserError("mean and std go together: one number per channel each")
    if not (all(0 <= one <= 1 for one in mean) and all(0 < one < math.inf for one in std)):
        raise UserError(
            f"mean must be within 0 and 1 and std above 0, as pixels are within 0 and 1: divide "
            f"both by 255 if yours are of 0..255; got mean {list(mean)}, std {list(std)}"
        )
    if metric not in (None, *METRICS):
        raise UserError(
            f"metric must be one of {', '.join(METRICS)}, got {metric!r}: N is the "
            "Euclidean distance after normalisation, E without it, C is cosine"
        )
    return ModuleModel(
        module=module, metric=metric or "N", mean=tuple(mean), std=tuple(std), name=name
    )


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` or a data-parallel wrapper has made this one of."""
    from torch import nn

    parallel = isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel)
    inner = getattr(module, "module" if parallel else "_orig_mod", None)
    return module if inner is None else _unwrapped(inner)


def _class_name(module: nn.Module) -> str:
    """The name of its class; of TorchScript, that of the class that was compiled."""
    compiled = module.original_name if isinstance(module, torch.jit.ScriptModule) else ""
    return compiled or type(module).__name__
