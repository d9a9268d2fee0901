"""An attack with the network, the images and the gallery that its checks use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from dmlbench.attacks.base import Attack, Attacked, Gallery
from dmlbench.compute.embedding import EmbeddingModel, embed
from dmlbench.core.protocol import Threat
from dmlbench.metrics.distance import Metric
from dmlbench.testing.tiny import tiny_data, tiny_network

THREAT = Threat(eps=0.2, alpha=0.05, steps=8, sp_scale=0)  # moderate: 0.2 of the pixel range
SEED = 0


@dataclass
class Subject:
    """An attack with all that its checks use; tensors are made when they are first needed."""

    component: Attack

    @cached_property
    def attack(self) -> Attack:
        """The attack, resolved for a moderate threat."""
        return self.component.resolve(THREAT)

    @cached_property
    def model(self) -> EmbeddingModel:
        """The network that is attacked, untrained."""
        return tiny_network().eval().requires_grad_(False)

    @cached_property
    def images(self) -> torch.Tensor:
        """(40, 1, 8, 8) in [0, 1]."""
        data = tiny_data()
        return data.evaluation_pixels(torch.from_numpy(data.test.images))

    @cached_property
    def gallery(self) -> Gallery:
        """The images as the network embeds them, in float32."""
        labels = torch.from_numpy(tiny_data().test.labels)
        e = embed(self.model, self.images)
        return Gallery(
            e,
            labels,
            self.model.metric,
            images=lambda index: self.images[index],
            train=self.train_split,
        )

    def train_split(self) -> Gallery:
        """The train images as the network embeds them."""
        data = tiny_data()
        images = data.evaluation_pixels(torch.from_numpy(data.train.images))
        labels = torch.from_numpy(data.train.labels)
        with torch.no_grad():
            e = embed(self.model, images)
        return Gallery(e, labels, self.model.metric, images=lambda index: images[index])

    def wide_gallery(self, metric: Metric) -> Gallery:
        """The gallery in float64 for another metric; of E the embeddings have no unit length."""
        e = self.gallery.embeddings.double()
        return trained_on_itself(
            Gallery(3 * e if metric == "E" else e, self.gallery.labels, metric)
        )

    def goal(self, gallery: Gallery, index: torch.Tensor) -> Any:
        """The goal of the queries at ``index``."""
        return self.attack.goal(gallery, index, SEED)

    def run(self, attack: Attack | None = None) -> Attacked:
        """A whole attack on all images."""
        index = torch.arange(len(self.images))
        one = attack or self.attack
        return one.run(self.model, self.images.clone(), index, self.gallery, seed=SEED)


def trained_on_itself(gallery: Gallery) -> Gallery:
    """``gallery`` with its own items as the train split."""
    return replace(gallery, train=lambda: gallery)


def near(gallery: Gallery, index: torch.Tensor, seed: int) -> torch.Tensor:
    """The embeddings at ``index``, moved by a little noise, of unit length unless E."""
    x = gallery.embeddings[index]
    e = x + 0.1 * noise(x.shape, seed).to(x.dtype)
    return e if gallery.metric == "E" else torch.nn.functional.normalize(e, dim=1)


def noise(shape: Any, seed: int) -> torch.Tensor:
    """Normal noise in float64 from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), dtype=torch.float64, generator=generator)


def alike(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """True if two tensors have the same numbers to within ``tolerance``; NaN equals NaN."""
    return a.shape == b.shape and torch.allclose(
        a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True
    )
