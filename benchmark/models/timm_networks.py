"""Any network of the timm library: classifiers, and the image towers of CLIP, DINOv2 and SigLIP."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dmlbench.common.errors import UserError
from dmlbench.common.lazy import torch
from dmlbench.common.text import first_line
from dmlbench.core.papers import Paper
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.models.base import MODELS
from dmlbench.models.pretrained import Pretrained

if TYPE_CHECKING:
    from torch import nn

TIMM = Paper(
    key="wightman2019timm",
    title="PyTorch Image Models",
    authors="Wightman, Ross",
    venue="GitHub",
    year=2019,
    url="https://doi.org/10.5281/zenodo.4414861",
)


@MODELS.register
@dataclass(frozen=True, kw_only=True)
class TimmModel(Pretrained):
    """Any network of the timm library, with the input normalisation and size of its weights."""

    card = Card("timm", "any network of the timm library (pip install 'dmlbench[timm]')", TIMM)

    name: str = parameter("resnet18", "name of the network in timm, with or without a tag")
    size: int | None = parameter(
        None,
        "pixels a side of its images, for a network that takes one size only; auto: that of its "
        "weights; another: its position embeddings are resampled",
        at_least=1,
        late=True,
    )

    @property
    def published(self) -> str:
        """The name and the tag of the weights in timm, e.g. ``resnet18.a1_in1k``."""
        known = self._config
        return f"{known.architecture}.{known.tag}"

    @property
    def classifier(self) -> tuple[str, ...]:
        """The names of the classifier layers, from timm's configuration of the network."""
        names = self._config.classifier
        return (names,) if isinstance(names, str) else tuple(names or ())

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and the standard deviation in timm's configuration of the weights."""
        return self._config.mean, self._config.std

    def download(self) -> Mapping[str, torch.Tensor]:
        """Download the weights by timm."""
        state: Mapping[str, torch.Tensor] = self._create(pretrained=True).state_dict()
        return state

    def backbone(self, channels: int, size: int) -> nn.Module:
        """Build the network with random weights.

        Raises:
            UserError: the images are not RGB or of another size than the network takes, or timm is
                missing or has no such network.
        """
        self._check_channels(channels)
        self._check_size(size)
        network = self._create()
        network.register_load_state_dict_pre_hook(_converted_by_timm)  # type: ignore[no-untyped-call]
        return network

    def published_network(self) -> nn.Module:
        """Build the network with the number of classes that timm's configuration says."""
        network: nn.Module = self._library().create_model(self.name)
        return network

    def _create(self, pretrained: bool = False) -> nn.Module:
        heads = {"fc": {"num_classes": self.dim}, "none": {"num_classes": 0}, "own": {}}
        sized = {"img_size": self.size} if self.size else {}
        network: nn.Module = self._library().create_model(
            self.name, pretrained=pretrained, **heads[self.head], **sized
        )
        return network

    def _check_size(self, size: int) -> None:
        """UserError unless the network takes images of ``size`` x ``size`` pixels."""
        known = self._config
        if not known.fixed_input_size:
            if self.size:
                raise UserError(f"model timm: {self.name} takes images of any size: leave size out")
            return
        wanted = self.size or known.input_size[-1]
        if size != wanted:
            raise UserError(
                f"model timm: {self.name} takes {wanted}x{wanted} images and the data set gives "
                f"{size}x{size}: let the data set give those (size={wanted} in its spec), or the "
                f"network take these, its position embeddings resampled (size={size} in its spec)"
            )

    @property
    def _config(self) -> Any:
        library = self._library()
        try:
            known = library.get_pretrained_cfg(self.name)
        except RuntimeError as error:  # it has no such tag behind the dot
            name = self.name.partition(".")[0]
            tags = ", ".join(library.list_models(f"{name}.*", pretrained=True)) or "none"
            raise UserError(f"model timm: {first_line(error)}: there are {tags}") from None
        if known is None:
            raise UserError(f"model timm: no network is called {self.name!r}")
        return known

    def _library(self) -> Any:
        try:
            import timm
        except ImportError:
            raise UserError(
                "model timm needs the timm library: pip install 'dmlbench[timm]'"
            ) from None
        return timm


def _converted_by_timm(
    network: nn.Module, state: dict[str, torch.Tensor], prefix: str, *_: object
) -> None:
    """Have timm rename and resample weights that do not fit as they are.

    They were saved by an older timm (the Swin of RobRank), by the authors of the network, or for
    another image size. It is a hook that runs before ``load_state_dict`` and changes ``state`` in
    place.
    """
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    bare = {key.removeprefix(prefix): value for key, value in state.items()}
    if convert is None or _shapes(bare) == _shapes(network.state_dict()):
        return
    state.clear()
    state.update({prefix + key: value for key, value in convert(bare, network).items()})


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}
