"""Small networks of the user of the Python interface, and quick attacks on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

FEW = ["ca+:steps=2", "es:steps=2,restarts=2"]


OWN = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 16))
"""


def own_network() -> nn.Module:
    """A network for 8x8 images, whose weights are those of the generator."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8))


class Levels(nn.Module):
    """Round an image to some levels, as a defense by a transformation of the input does."""

    def __init__(self, inner: nn.Module, levels: int) -> None:
        super().__init__()
        self.inner = inner
        self.levels: Any = levels
        self.register_buffer("mask", torch.ones(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rounded = (x * self.levels).round() / self.levels * self.mask
        embedded: torch.Tensor = self.inner(rounded)
        return embedded
