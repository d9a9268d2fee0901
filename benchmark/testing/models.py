"""Checks of a network: what it does with images, and that it can be trained and stored."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from dmlbench.common.errors import UserError
from dmlbench.compute import model_checks
from dmlbench.compute.embedding import EmbeddingModel, embed, embed_frozen, embed_together, frozen
from dmlbench.compute.randomness import global_seeds
from dmlbench.core.flags import ROUNDING
from dmlbench.models.base import FactoryModel, Model, canonical_model, copied, parse_model
from dmlbench.storage import checkpoint
from dmlbench.testing import cards
from dmlbench.testing.findings import FlawError, require
from dmlbench.testing.randomness import no_global_randomness

SHAPES = ((1, 28), (3, 64), (3, 224), (3, 32), (3, 112), (1, 32))
"""Channels and size of images, tried in this order."""
IMAGES = 6


@dataclass
class Subject:
    """A network with the images that it takes."""

    component: Model

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Channels and size: the first of ``SHAPES`` that the network takes."""
        reasons = []
        for shape in SHAPES:
            try:
                with global_seeds(0):
                    self.component.build(*shape)
            except UserError as error:
                reasons.append(str(error))
            else:
                return shape
        tried = " and ".join(f"{c}x{size}x{size}" for c, size in SHAPES)
        raise FlawError(f"it embeds images of none of the shapes {tried}: {reasons[-1]}")

    @cached_property
    def images(self) -> torch.Tensor:
        """(6, channels, size, size) in [0, 1]."""
        generator = torch.Generator().manual_seed(0)
        channels, size = self.shape
        return torch.rand(IMAGES, channels, size, size, generator=generator)

    def build(self, seed: int = 0) -> EmbeddingModel:
        """A new network; PyTorch's global generator decides its weights, as in training."""
        with global_seeds(seed):
            return self.component.build(*self.shape)

    @cached_property
    def network(self) -> EmbeddingModel:
        """A new network in eval mode, shared by the checks that do not change it."""
        return self.build().eval()


def card(s: Subject) -> None:
    """A registered network's card; the factory of a network has none of its own."""
    if not isinstance(s.component, FactoryModel):
        cards.card(s.component)


def build(s: Subject) -> None:
    """The network can be built for images of a usual shape."""
    assert s.shape


def facts(s: Subject) -> None:
    """It can be named again, and stored."""
    text = json.dumps({**s.component.facts, **s.component.training_facts})
    require(text, "its facts are empty")
    if isinstance(s.component, FactoryModel):
        require(
            parse_model(canonical_model(s.component)) == s.component,
            f"{canonical_model(s.component)} is read as another network",
        )


def embeddings(s: Subject) -> None:
    """(B, C, H, W) images become (B, D) finite float32 embeddings."""
    e = embed_frozen(s.network, s.images)
    require(
        e.ndim == 2 and len(e) == IMAGES and e.dtype == torch.float32,
        f"{IMAGES} images become {e.dtype} of shape {tuple(e.shape)}: it must be float32, "
        f"({IMAGES}, D)",
    )
    _right(model_checks.not_finite(_passes_of(s)(s.images), "clean"))
    require(
        bool((e != e[:1]).any()),
        "different images have one embedding: the network does not look at its input",
    )
    network = _with_statistics(s)
    with torch.no_grad(), frozen(network):
        coarse = model_checks.coarseness(network.raw(s.images))
    require(not coarse, f"embeddings {coarse}: compute and return them in float32")


def _with_statistics(s: Subject) -> EmbeddingModel:
    """A copy of the network whose batch norms have the statistics of the images.

    With random weights and the statistics of no images, deep networks let little of an image pass.
    """
    network = copied(s.network, canonical_model(s.component))
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.train()
            module.reset_running_stats()
            module.momentum = None  # the mean over all batches: of one batch, its own
    with torch.no_grad():
        network.raw(s.images)
    return network.eval()


def deterministic(s: Subject) -> None:
    """In eval mode the same images have the same embeddings, whatever is drawn elsewhere."""
    found = []
    for seed in (1, 2):
        with global_seeds(seed), no_global_randomness("the network in eval mode", []):
            found.append(embed_frozen(s.network, s.images))
    passes = _passes_of(s)
    _right(model_checks.not_deterministic(passes, s.images, passes(s.images), s.network))
    require(torch.equal(*found), "two forward passes in eval mode differ")


def alone(s: Subject) -> None:
    """An image alone has the embedding that it has in a batch."""
    tolerance, passes = ROUNDING["fp32"], _passes_of(s)
    with frozen(s.network):
        with torch.no_grad():
            e = embed_together(s.network, s.images)
        wrong = model_checks.batch_dependent(passes, s.images, e, s.network, tolerance)
    _right(wrong)


def untouched(s: Subject) -> None:
    """The images are not changed in place."""
    _right(model_checks.in_place(s.network, s.images))


def gradient(s: Subject) -> None:
    """Attacks get a gradient in the image."""
    images = s.images.clone().requires_grad_()
    with frozen(s.network):
        e = embed(s.network, images)
    found = None
    if e.requires_grad:
        (found,) = torch.autograd.grad(e[:, 0].sum(), images, allow_unused=True)
    require(
        found is not None and found.isfinite().all() and found.flatten(1).any(1).all(),
        "the gradient in the image is zero, missing or not finite: attacks could not find their "
        "way, and the network would look robust. Leave out rounding, argmax, detach() and "
        "torch.no_grad(); if it computes outside of PyTorch, run attacks that need no gradient",
    )


def trainable(s: Subject) -> None:
    """A training step reaches the parameters and changes the embeddings."""
    network = s.build().train()
    learned = [p for p in network.parameters() if p.requires_grad]
    before = embed_frozen(network, s.images)
    with global_seeds(0):
        e = network(s.images)
    if e.requires_grad:
        (e[0] - e[1]).square().sum().backward()
    require(
        any(p.grad is not None and p.grad.any() for p in learned),
        "no parameter gets a gradient: it cannot be trained. Leave out detach() and "
        "torch.no_grad(), and register layers as attributes or in an nn.ModuleList",
    )
    torch.optim.Adam(learned, lr=1e-2).step()
    require(
        not torch.equal(before, embed_frozen(network, s.images)),
        "a training step does not change the embeddings: its parameters are not used",
    )


def seeded(s: Subject) -> None:
    """The seed of a training decides the first weights, and only it."""
    a, b, c = (embed_frozen(s.build(seed), s.images) for seed in (1, 1, 2))
    require(
        torch.equal(a, b),
        "two networks of one seed have different weights: a training could not be repeated. Take "
        "random weights from PyTorch's global generator, as its layers do",
    )
    require(not torch.equal(a, c), "two seeds give the same weights: seeds would measure nothing")


def stored(s: Subject) -> None:
    """Weights that were saved and loaded give the same embeddings."""
    require(s.network.state_dict(), "it has no weights that could be stored")
    other = s.build(seed=2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / checkpoint.WEIGHTS
        checkpoint.save_weights(path, s.network)
        checkpoint.load_weights(path, other)
    require(
        torch.equal(embed_frozen(s.network, s.images), embed_frozen(other, s.images)),
        "after saving and loading it gives other embeddings: something that decides them is not in "
        "its state dict. Register it as a parameter or a buffer",
    )


def same_in_training(s: Subject) -> None:
    """Check that a network which says so embeds alike in training and evaluation."""
    if not s.component.same_in_training:
        return
    network = s.build().train()
    with global_seeds(0), torch.no_grad():
        e = network(s.images)
    require(
        torch.allclose(e, embed_frozen(network, s.images), rtol=1e-4, atol=1e-5),
        "it says that it is same_in_training, and a batch has other embeddings in training than in "
        "evaluation: triplets would be mined on the wrong ones; leave `same_in_training` out",
    )


def _right(wrong: str) -> None:
    require(not wrong, wrong)


def _passes_of(s: Subject) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda images: embed_frozen(s.network, images)


CHECKS: dict[str, Callable[[Subject], None]] = {
    "card": card,
    "parameters": lambda s: cards.parameters(s.component),
    "facts": facts,
    "build": build,
    "embeddings": embeddings,
    "deterministic": deterministic,
    "alone": alone,
    "untouched": untouched,
    "gradient": gradient,
    "trainable": trainable,
    "seeded": seeded,
    "stored": stored,
    "same_in_training": same_in_training,
}
NEEDS = dict.fromkeys(list(CHECKS)[list(CHECKS).index("build") + 1 :], "build")
