"""Networks for 224x224 images: those of torchvision that papers use, trained on ImageNet."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dmlbench.common.lazy import torch
from dmlbench.core.papers import Paper
from dmlbench.core.registry import Card
from dmlbench.models.base import MODELS
from dmlbench.models.pretrained import Pretrained

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
MOBILENET = Paper(
    key="sandler2018mobilenetv2",
    title="MobileNetV2: Inverted Residuals and Linear Bottlenecks",
    authors="Sandler, Mark and Howard, Andrew and Zhu, Menglong and Zhmoginov, Andrey and "
    "Chen, Liang-Chieh",
    venue="CVPR",
    year=2018,
    url="https://arxiv.org/abs/1801.04381",
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
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class TorchvisionModel(Pretrained, abc.ABC):
    """A network of torchvision.models; its published weights are ``IMAGENET1K_V1``."""

    replaced: ClassVar[str]  # the attribute name of the classifier
    features: ClassVar[int]  # number of its inputs
    stochastic_depth: ClassVar[bool] = False  # True: training skips layers at random

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and the standard deviation of the channels of ImageNet."""
        return MEAN, STD

    @property
    def classifier(self) -> tuple[str, ...]:
        """The layer ``replaced``."""
        return (self.replaced,)

    @property
    def same_in_training(self) -> bool:
        """True with frozen batch norm: dropout occurs only in the layer that is replaced."""
        return self.freeze_bn and not self.stochastic_depth and self.head != "own"

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
        self._check_channels(channels)
        network = self.published_network()
        if self.head == "fc":
            setattr(network, self.replaced, torch.nn.Linear(self.features, self.dim))
        elif self.head == "none":
            setattr(network, self.replaced, torch.nn.Identity())
        return network

    def published_network(self) -> nn.Module:
        """Build the network of torchvision, with its 1000 classes."""
        import torchvision.models

        network: nn.Module = torchvision.models.get_model(self.card.name, weights=None)
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
    replaced = "fc"
    features = 512


@MODELS.register
@dataclass(frozen=True, kw_only=True)
class ResNet50(TorchvisionModel):
    """ResNet with 50 layers."""

    card = Card("resnet50", "ResNet-50 of torchvision, FC dim", RESNET)
    replaced = "fc"
    features = 2048


@MODELS.register
@dataclass(frozen=True, kw_only=True)
class MnasNet(TorchvisionModel):
    """MnasNet with the depth multiplier 1."""

    card = Card("mnasnet1_0", "MnasNet-1.0 of torchvision, FC dim", MNASNET)
    replaced = "classifier"
    features = 1280


@MODELS.register
@dataclass(frozen=True, kw_only=True)
class MobileNetV2(TorchvisionModel):
    """MobileNetV2 with the width multiplier 1."""

    card = Card("mobilenet_v2", "MobileNetV2 of torchvision, FC dim", MOBILENET)
    replaced = "classifier"
    features = 1280


@MODELS.register
@dataclass(frozen=True, kw_only=True)
class SwinT(TorchvisionModel):
    """Swin transformer of the size "tiny"."""

    card = Card("swin_t", "Swin-T of torchvision, FC dim", SWIN)
    replaced = "head"
    features = 768
    stochastic_depth = True
