"""Tiny made images and a tiny network: enough to tell right from wrong, in seconds on a CPU."""

from __future__ import annotations

import numpy as np
from torch import nn

from dmlbench.compute.embedding import EmbeddingModel
from dmlbench.compute.randomness import global_seeds
from dmlbench.datasets.base import RetrievalData, Split


def make_split(seed: int, classes: int = 5, each: int = 8, size: int = 8) -> Split:
    """Grey images: noisy copies of one picture per class.

    They can be learned, and are not told apart without learning.

    Args:
        seed: of the noise; the pictures of the classes are always the same.
        classes: how many classes.
        each: images per class.
        size: height and width of an image.
    """
    prototypes = np.random.default_rng(7).integers(0, 256, (classes, 1, size, size))
    noise = np.random.default_rng(seed).normal(0, 60, (classes * each, 1, size, size))
    labels = np.repeat(np.arange(classes), each)
    images = np.clip(prototypes[labels] + noise, 0, 255).astype(np.uint8)
    return Split(images, labels.astype(np.int64))


def tiny_data() -> RetrievalData:
    """80 training images and 40 test images of 5 classes, 1 x 8 x 8."""
    return RetrievalData(make_split(1, each=16), make_split(2))


def tiny_network() -> EmbeddingModel:
    """An untrained network for the images of ``tiny_data``: (B, 1, 8, 8) to (B, 8), metric N.

    PyTorch's global generator is afterwards as it was.
    """
    with global_seeds(0):
        backbone = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, 1024),
            nn.ReLU(),
            nn.Linear(1024, 8),
        )
    return EmbeddingModel(backbone, "N", same_in_training=True)
