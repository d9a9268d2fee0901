"""The networks for 28x28 images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmlbench.common.errors import UserError
from dmlbench.common.lazy import torch
from dmlbench.core.papers import Paper
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.models.base import MODELS, Model

if TYPE_CHECKING:
    from torch import nn

MADRY = Paper(
    key="madry2018towards",
    title="Towards Deep Learning Models Resistant to Adversarial Attacks",
    authors="Madry, Aleksander and Makelov, Aleksandar and Schmidt, Ludwig and "
    "Tsipras, Dimitris and Vladu, Adrian",
    venue="ICLR",
    year=2018,
    url="https://arxiv.org/abs/1706.06083",
)
LENET = Paper(
    key="lecun1998gradient",
    title="Gradient-Based Learning Applied to Document Recognition",
    authors="LeCun, Yann and Bottou, Leon and Bengio, Yoshua and Haffner, Patrick",
    venue="Proceedings of the IEEE",
    year=1998,
    url="https://doi.org/10.1109/5.726791",
)


@MODELS.register
@dataclass(frozen=True, kw_only=True)
class C2F2(Model):
    """Two convolutions and two fully connected layers (Madry et al.; used by AdvRank)."""

    card = Card("c2f2", "two 5x5 convolutions (32, 64), FC 1024, FC dim", MADRY)

    dim: int = parameter(512, "embedding dimension", at_least=1)

    @property
    def same_in_training(self) -> bool:
        """True: no layer behaves differently in training."""
        return True

    def check_images(self, channels: int, size: int) -> None:
        """UserError if the images are smaller than 4x4 pixels."""
        if size < 4:
            raise UserError(f"model c2f2 needs images of at least 4x4 pixels, got {size}x{size}")

    def backbone(self, channels: int, size: int) -> nn.Module:
        """Build the network; UserError if the images are smaller than 4x4 pixels."""
        self.check_images(channels, size)
        nn = torch.nn
        return nn.Sequential(
            nn.Conv2d(channels, 32, 5, padding=2),
            nn.MaxPool2d(2),  # before the ReLU: the same bits, a quarter of its work
            nn.ReLU(),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * (size // 4) ** 2, 1024),
            nn.ReLU(),
            nn.Linear(1024, self.dim),
        )


@MODELS.register
@dataclass(frozen=True, kw_only=True)
class LeNet(Model):
    """LeNet with max pooling, as in AdvRank's and RobRank's 28x28 experiments."""

    card = Card("lenet", "5x5 convolutions (20, 50), FC 500, FC dim; small and quick", LENET)

    dim: int = parameter(128, "embedding dimension", at_least=1)

    @property
    def same_in_training(self) -> bool:
        """True: no layer behaves differently in training."""
        return True

    def check_images(self, channels: int, size: int) -> None:
        """UserError if the images are smaller than 16x16 pixels."""
        if size < 16:
            raise UserError(f"model lenet needs images of at least 16x16 pixels, got {size}x{size}")

    def backbone(self, channels: int, size: int) -> nn.Module:
        """Build the network; UserError if the images are smaller than 16x16 pixels.

        Convolutions are not padded: of 28x28 pixels a 4x4 map remains.
        """
        self.check_images(channels, size)
        nn = torch.nn
        side = ((size - 4) // 2 - 4) // 2
        return nn.Sequential(
            nn.Conv2d(channels, 20, 5),
            nn.MaxPool2d(2),
            nn.Conv2d(20, 50, 5),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(50 * side**2, 500),
            nn.ReLU(),
            nn.Linear(500, self.dim),
        )
