"""Networks for 224x224 images: those of torchvision that papers use, and all of timm.

A fully connected layer to the embedding replaces the classifier, and the input is normalised as it
was when the published weights were trained on ImageNet. Training leaves the statistics of batch
norm as they are (Roth et al., ICML 2020), but does change its scales and shifts.
"""

from __future__ import annotations

import abc
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dmlbench.common.errors import UserError
from dmlbench.common.hashing import file_sha256
from dmlbench.common.lazy import torch
from dmlbench.core.papers import Paper
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.models.base import MODELS, Model, canonical_model

if TYPE_CHECKING:
    from torch import nn

RESNET = Paper(
    key="he2016deep",
    title="Deep Residual Learning for Image Recognition",
    authors="He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian",
    venue="CVPR",
    year=2016,
    url="https://arxiv.org/abs/1512.03385",
)
MNASNET = Paper(
    key="tan2019mnasnet",
    title="MnasNet: Platform-Aware Neural Architecture Search for Mobile",
    authors="Tan, Mingxing and Chen, Bo and Pang, Ruoming and Vasudevan, Vijay and "
    "Sandler, Mark and Howard, Andrew and Le, Quoc V.",
    venue="CVPR",
    year=2019,
    url="https://arxiv.org/abs/1807.11626",
)
SWIN = Paper(
    key="liu2021swin",
    title="Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
    authors="Liu, Ze and Lin, Yutong and Cao, Yue and Hu, Han and Wei, Yixuan and "
    "Zhang, Zheng and Lin, Stephen and Guo, Baining",
    venue="ICCV",
    year=2021,
    url="https://arxiv.org/abs/2103.14030",
)
TIMM = Paper(
    key="wightman2019timm",
    title="PyTorch Image Models",
    authors="Wightman, Ross",
    venue="GitHub",
    year=2019,
    url="https://doi.org/10.5281/zenodo.4414861",
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PRETRAINED, NONE = "imagenet", "none"


@dataclass(frozen=True, kw_only=True)
class Pretrained(Model, abc.ABC):
    """A published classifier, whose last layer is replaced by one to the embedding."""

    dim: int = parameter(512, "embedding dimension", at_least=1)
    weights: str = parameter(
        PRETRAINED, "initial weights: imagenet (downloaded), none (random), or a file"
    )
    freeze_bn: bool = parameter(True, "leave the statistics of batch norm as they are in training")

    @property
    def freezes_batch_norm(self) -> bool:
        """The parameter ``freeze_bn``."""
        return self.freeze_bn

    @property
    def facts(self) -> dict[str, Any]:
        """The facts of every model, without those parameters that matter in training only."""
        facts = super().facts
        only_training = ("weights", "freeze_bn")
        facts["values"] = {k: v for k, v in facts["values"].items() if k not in only_training}
        return facts

    @property
    def training_facts(self) -> dict[str, Any]:
        """The initial weights (their published name or the SHA-256 of the file), ``freeze_bn``."""
        weights = self.weights
        if weights == PRETRAINED:
            weights = self.published
        elif weights != NONE:
            weights = file_sha256(self._file())
        return {"weights": weights, "freeze_bn": self.freeze_bn}

    @property
    @abc.abstractmethod
    def published(self) -> str:
        """The full name of the weights that ``weights=imagenet`` loads."""

    @property
    @abc.abstractmethod
    def head(self) -> str:
        """The attribute name of the layer that is replaced."""

    @abc.abstractmethod
    def download(self) -> Mapping[str, torch.Tensor]:
        """Download the published weights; raises whatever the library raises if it fails."""

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and the standard deviation of the channels of ImageNet."""
        return MEAN, STD

    def initialise(self, backbone: nn.Module) -> None:
        """Load the weights that ``weights`` names.

        The replaced layer gets weights only from a checkpoint of dmlbench in which it has the same
        size; otherwise it stays random.

        Raises:
            UserError: the weights are not available, or do not fit the network.
        """
        from dmlbench.storage.weights import BACKBONE, fitted, load_state, read_state

        name, own, from_dmlbench = self.card.name, backbone.state_dict(), False
        if self.weights == NONE:
            return
        if self.weights == PRETRAINED:
            try:
                with redirect_stdout(sys.stderr):  # the hub prints its progress
                    state = self.download()
            except Exception as error:  # no connection, an error of the hub, a wrong hash
                reason = " ".join(str(error).split())[:200]
                random = canonical_model(replace(self, weights=NONE))
                raise UserError(
                    f"model {name}: {self.published} is not available ({reason}): "
                    f"{self.manual_download}, or start from a file (weights=FILE) or from random "
                    f"weights ({random})"
                ) from None
        else:
            try:
                state, prefix = fitted(read_state(self._file()), own)
            except ValueError as error:
                raise UserError(f"model {name}: {self.weights}: {error}") from None
            from_dmlbench = prefix == BACKBONE
        body = {key: value for key, value in state.items() if not self._in_replaced_layer(key)}
        fitting = {
            key: value
            for key, value in state.items()
            if from_dmlbench
            and self._in_replaced_layer(key)
            and key in own
            and own[key].shape == value.shape
        }
        rest = {key: own[key] for key in own if self._in_replaced_layer(key) and key not in fitting}
        try:
            load_state(backbone, body | fitting | rest)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"model {name}: {self.weights} does not fit: {reason}") from None

    @property
    def manual_download(self) -> str:
        """Advice, in an error message, for a machine without an internet connection."""
        return "fetch them on a machine that has a network"

    def _in_replaced_layer(self, key: str) -> bool:
        return key.startswith(f"{self.head}.")

    def _file(self) -> Path:
        path = Path(self.weights)
        if not path.is_file():
            raise UserError(
                f"model {self.card.name}: weights must be imagenet, none or a file, and "
                f"{self.weights!r} is not a file"
            )
        return path

    def _check_channels(self, channels: int) -> None:
        if channels != 3:
            raise UserError(f"model {self.card.name} needs RGB images, got {channels} channel(s)")


@dataclass(frozen=True, kw_only=True)
class TorchvisionModel(Pretrained, abc.ABC):
    """A network of torchvision.models; its published weights are ``IMAGENET1K_V1``."""

    features: ClassVar[int]  # number of inputs of the replaced layer
    stochastic_depth: ClassVar[bool] = False  # True: training skips layers at random

    @property
    def same_in_training(self) -> bool:
        """True with frozen batch norm: dropout occurs only in the layer that is replaced."""
        return self.freeze_bn and not self.stochastic_depth

    @property
    def published(self) -> str:
        """The name of the weights in torchvision, e.g. ``ResNet18_Weights.IMAGENET1K_V1``."""
        return str(self._weights_entry)

    @property
    def manual_download(self) -> str:
        """The file and the folder in which torch.hub looks for it."""
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        return f"put {self._weights_entry.url.rpartition('/')[2]} into {folder}"

    def download(self) -> Mapping[str, torch.Tensor]:
        """Download the weights by torch.hub, unless it has the file, and check their hash."""
        state: Mapping[str, torch.Tensor] = self._weights_entry.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
        return state

    def check_images(self, channels: int, size: int) -> None:
        """UserError if the images are not RGB."""
        self._check_channels(channels)

    def backbone(self, channels: int, size: int) -> nn.Module:
        """Build the network with random weights; UserError if the images are not RGB."""
        import torchvision.models

        self._check_channels(channels)
        network: nn.Module = torchvision.models.get_model(self.card.name, weights=None)
        setattr(network, self.head, torch.nn.Linear(self.features, self.dim))
        return network

    @property
    def _weights_entry(self) -> Any:
        import torchvision.models

        return torchvision.models.get_model_weights(self.card.name).IMAGENET1K_V1


@MODELS.register
@dataclass(frozen=True, kw_only=True)
class ResNet18(TorchvisionModel):
    """ResNet with 18 layers: the network of the papers for 224x224 images."""

    card = Card("resnet18", "ResNet-18 of torchvision, FC dim", RESNET)
    head = "fc"
    features = 512


@MODELS.register
@dataclass(frozen=True, kw_only=True)
class ResNet50(TorchvisionModel):
    """ResNet with 50 layers."""

    card = Card("resnet50", "ResNet-50 of torchvision, FC dim", RESNET)
    head = "fc"
    features = 2048


@MODELS.register
@dataclass(frozen=True, kw_only=True)
class MnasNet(TorchvisionModel):
    """MnasNet with the depth multiplier 1."""

    card = Card("mnasnet1_0", "MnasNet-1.0 of torchvision, FC dim", MNASNET)
    head = "classifier"
    features = 1280


@MODELS.register
@dataclass(frozen=True, kw_only=True)
class SwinT(TorchvisionModel):
    """Swin transformer of the size "tiny"."""

    card = Card("swin_t", "Swin-T of torchvision, FC dim", SWIN)
    head = "head"
    features = 768
    stochastic_depth = True


@MODELS.register
@dataclass(frozen=True, kw_only=True)
class TimmModel(Pretrained):
    """Any classifier of the timm library, with the input normalisation of its weights."""

    card = Card("timm", "any network of the timm library (pip install 'dmlbench[timm]')", TIMM)

    name: str = parameter("resnet18", "name of the network in timm, with or without a tag")

    @property
    def published(self) -> str:
        """The name and the tag of the weights in timm, e.g. ``resnet18.a1_in1k``."""
        known = self._config
        return f"{known.architecture}.{known.tag}"

    @property
    def head(self) -> str:
        """The name of the classifier layer, from timm's configuration of the network."""
        return str(self._config.classifier)

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and the standard deviation in timm's configuration of the weights."""
        return self._config.mean, self._config.std

    def download(self) -> Mapping[str, torch.Tensor]:
        """Download the weights by timm."""
        state: Mapping[str, torch.Tensor] = (
            self._library()
            .create_model(self.name, pretrained=True, num_classes=self.dim)
            .state_dict()
        )
        return state

    def backbone(self, channels: int, size: int) -> nn.Module:
        """Build the network with random weights.

        Raises:
            UserError: the images are not RGB, or timm is missing or has no such network.
        """
        self._check_channels(channels)
        network: nn.Module = self._library().create_model(self.name, num_classes=self.dim)
        network.register_load_state_dict_pre_hook(_renamed_by_timm)  # type: ignore[no-untyped-call]
        return network

    @property
    def _config(self) -> Any:
        known = self._library().get_pretrained_cfg(self.name)
        if known is None:
            raise UserError(f"model timm: no network is called {self.name!r}")
        return known

    def _library(self) -> Any:
        try:
            import timm
        except ImportError:
            raise UserError("model timm needs the timm library: pip install timm") from None
        return timm


def _renamed_by_timm(
    network: nn.Module, state: dict[str, torch.Tensor], prefix: str, *_: object
) -> None:
    """Rename weights that were saved by an older timm, such as the Swin of RobRank.

    It is a hook that runs before ``load_state_dict`` and changes ``state`` in place.
    """
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    bare = {key.removeprefix(prefix): value for key, value in state.items()}
    if convert is None or bare.keys() == network.state_dict().keys():
        return
    state.clear()
    state.update({prefix + key: value for key, value in convert(bare, network).items()})
