"""A small network of the user of the Python interface, and quick attacks on it."""

from __future__ import annotations

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
