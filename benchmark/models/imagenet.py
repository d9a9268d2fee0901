"""The networks of the 224x224 experiments, by torchvision, and any other that timm has.

The classifier is replaced by one fully connected layer to the embedding, the input is normalised
as in ImageNet's training, and the statistics of batch norm stay as they are in training too (Roth
et al., ICML 2020); its scales and shifts are trained.
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
    """A classifier whose last layer is replaced."""

    dim: int = parameter(512, "embedding dimension", at_least=1)
    weights: str = parameter(
        PRETRAINED, "what training starts from: imagenet (downloaded), none, or a file"
    )
    freeze_bn: bool = parameter(True, "leave the statistics of batch norm as they are")

    @property
    def freezes_batch_norm(self) -> bool:
        """As the user said."""
        return self.freeze_bn

    @property
    def facts(self) -> dict[str, Any]:
        """Without what only training depends on."""
        facts = super().facts
        only_training = ("weights", "freeze_bn")
        facts["values"] = {k: v for k, v in facts["values"].items() if k not in only_training}
        return facts

    @property
    def training_facts(self) -> dict[str, Any]:
        """The weights by their published name or their content, and batch norm."""
        weights = self.weights
        if weights == PRETRAINED:
            weights = self.published
        elif weights != NONE:
            weights = file_sha256(self._file())
        return {"weights": weights, "freeze_bn": self.freeze_bn}

    @property
    @abc.abstractmethod
    def published(self) -> str:
        """The name of the weights that ``imagenet`` means."""

    @property
    @abc.abstractmethod
    def head(self) -> str:
        """The layer that is replaced."""

    @abc.abstractmethod
    def download(self) -> Mapping[str, torch.Tensor]:
        """The published weights. Raises what the library raises where it cannot have them."""

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """ImageNet's mean and standard deviation."""
        return MEAN, STD

    def initialise(self, backbone: nn.Module) -> None:
        """Load the weights; those of the replaced layer only from a model of dmlbench's.

        Raises:
            UserError: they cannot be had, or are another network's.
        """
        from dmlbench.storage.weights import load_state, read_state

        name, own, ours = self.card.name, backbone.state_dict(), False
        if self.weights == NONE:
            return
        if self.weights == PRETRAINED:
            try:
                with redirect_stdout(sys.stderr):  # the hub tells its progress
                    state = self.download()
            except Exception as error:  # the network's, the hub's, a wrong hash
                reason = " ".join(str(error).split())[:200]
                random = canonical_model(replace(self, weights=NONE))
                raise UserError(
                    f"model {name}: {self.published} cannot be had ({reason}): {self.by_hand}, or "
                    f"start from a file (weights=FILE) or at random ({random})"
                ) from None
        else:
            state = read_state(self._file())
            ours = all(key.startswith("backbone.") for key in state)
            if ours:
                state = {key.removeprefix("backbone."): value for key, value in state.items()}
        body = {key: value for key, value in state.items() if not self._is_head(key)}
        fitting = {
            key: value
            for key, value in state.items()
            if ours and self._is_head(key) and key in own and own[key].shape == value.shape
        }
        rest = {key: own[key] for key in own if self._is_head(key) and key not in fitting}
        try:
            load_state(backbone, body | fitting | rest)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"model {name}: {self.weights} does not fit: {reason}") from None

    @property
    def by_hand(self) -> str:
        """How the published weights get to a machine that has no network."""
        return "fetch them on a machine that has a network"

    def _is_head(self, key: str) -> bool:
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
    """A builder of torchvision.models, and the weights that ``pretrained=True`` used to mean."""

    features: ClassVar[int]  # that go into the replaced layer
    drops: ClassVar[bool] = False  # layers at random, in training

    @property
    def steady(self) -> bool:
        """With frozen batch norm; dropout is in the replaced layer alone."""
        return self.freeze_bn and not self.drops

    @property
    def published(self) -> str:
        """``ResNet18_Weights.IMAGENET1K_V1``."""
        return str(self._entry)

    @property
    def by_hand(self) -> str:
        """Where torch.hub looks."""
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        return f"put {self._entry.url.rpartition('/')[2]} into {folder}"

    def download(self) -> Mapping[str, torch.Tensor]:
        """By torch.hub, once, the hash checked."""
        state: Mapping[str, torch.Tensor] = self._entry.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
        return state

    def backbone(self, channels: int, size: int) -> nn.Module:
        """Random weights."""
        import torchvision.models

        self._check_channels(channels)
        network: nn.Module = torchvision.models.get_model(self.card.name, weights=None)
        setattr(network, self.head, torch.nn.Linear(self.features, self.dim))
        return network

    @property
    def _entry(self) -> Any:
        import torchvision.models

        return torchvision.models.get_model_weights(self.card.name).IMAGENET1K_V1


@MODELS.register
@dataclass(frozen=True, kw_only=True)
class ResNet18(TorchvisionModel):
    """The papers' network."""

    card = Card("resnet18", "ResNet-18 of torchvision, FC dim", RESNET)
    head = "fc"
    features = 512


@MODELS.register
@dataclass(frozen=True, kw_only=True)
class ResNet50(TorchvisionModel):
    """Fifty layers."""

    card = Card("resnet50", "ResNet-50 of torchvision, FC dim", RESNET)
    head = "fc"
    features = 2048


@MODELS.register
@dataclass(frozen=True, kw_only=True)
class MnasNet(TorchvisionModel):
    """MnasNet of depth multiplier 1."""

    card = Card("mnasnet1_0", "MnasNet-1.0 of torchvision, FC dim", MNASNET)
    head = "classifier"
    features = 1280


@MODELS.register
@dataclass(frozen=True, kw_only=True)
class SwinT(TorchvisionModel):
    """The tiny Swin transformer."""

    card = Card("swin_t", "Swin-T of torchvision, FC dim", SWIN)
    head = "head"
    features = 768
    drops = True


@MODELS.register
@dataclass(frozen=True, kw_only=True)
class TimmModel(Pretrained):
    """Any classifier of the timm library, normalised as its published weights want it."""

    card = Card("timm", "any network of the timm library (pip install 'dmlbench[timm]')", TIMM)

    name: str = parameter("resnet18", "timm's name of it, with a tag or without")

    @property
    def published(self) -> str:
        """``resnet18.a1_in1k``."""
        known = self._config
        return f"{known.architecture}.{known.tag}"

    @property
    def head(self) -> str:
        """As timm says."""
        return str(self._config.classifier)

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """As timm says."""
        return self._config.mean, self._config.std

    def download(self) -> Mapping[str, torch.Tensor]:
        """By timm, from the hub it uses."""
        state: Mapping[str, torch.Tensor] = (
            self._library()
            .create_model(self.name, pretrained=True, num_classes=self.dim)
            .state_dict()
        )
        return state

    def backbone(self, channels: int, size: int) -> nn.Module:
        """Random weights."""
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
    """Weights as an older timm named them (RobRank's Swin), renamed by the timm that is here."""
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    bare = {key.removeprefix(prefix): value for key, value in state.items()}
    if convert is None or bare.keys() == network.state_dict().keys():
        return
    state.clear()
    state.update({prefix + key: value for key, value in convert(bare, network).items()})
