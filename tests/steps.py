"""One step of a defense on a small batch, and what its slow twins share."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from dmlbench.compute.distributed import World
from dmlbench.compute.embedding import EmbeddingModel, embed
from dmlbench.core.protocol import TrainingThreat
from dmlbench.datasets.base import RetrievalData
from dmlbench.defenses.base import Batch, Defense, StepOutput
from dmlbench.defenses.samplers import Triplets
from dmlbench.models.small import C2F2

THREAT = TrainingThreat(eps=0.2, eta=4, alpha=0.06)


GAMMA = 0.2


def network() -> EmbeddingModel:
    torch.manual_seed(1)
    return C2F2(dim=8).build(1, 8).train()


def make_batch(model: EmbeddingModel, data: RetrievalData, seed: int = 0) -> Batch:
    images = torch.from_numpy(data.train.images[::5]).float() / 255
    labels = torch.from_numpy(data.train.labels[::5])
    pairs = labels.bincount().min() // 2 * 2
    keep = torch.cat([(labels == y).nonzero()[:pairs, 0] for y in labels.unique()])
    with torch.no_grad():
        embeddings = embed(model.eval(), images[keep])
    model.train()
    generator = torch.Generator().manual_seed(seed)
    return Batch(images[keep], labels[keep], lambda: embeddings, generator, World())


def mined(defense: Defense, sampler: str, batch: Batch) -> Triplets:
    """The triplets that a step with this generator state will draw first."""
    state = batch.generator.get_state()
    triplets = defense.mine(sampler, batch, "N")
    batch.generator.set_state(state)
    return triplets


def drawn(defense: Defense, sampler: str, batch: Batch) -> Triplets:
    """The triplets of the next step; the generator goes on behind them, as in the step."""
    return defense.mine(sampler, batch, "N")


def d(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).norm(dim=1)


def flat_gradient(model: EmbeddingModel, step: StepOutput) -> torch.Tensor:
    assert step.loss is not None
    return torch.cat([g.flatten() for g in torch.autograd.grad(step.loss, model.parameters())])


def agrees(model: EmbeddingModel, batch: Batch, defense: Defense, expected: torch.Tensor) -> None:
    """The loss of the defense's step and its gradient are those of ``expected``, of ``model``."""
    reference = torch.autograd.grad(expected, list(model.parameters()))
    step = defense.step(model, batch, {})
    assert step.loss is not None
    assert step.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    flat = torch.cat([g.flatten() for g in reference])
    assert (flat_gradient(model, step) - flat).norm() <= 1e-4 * flat.norm()
    assert step.passes == step.full_passes > 0


def slow_pgd(
    model: EmbeddingModel, images: torch.Tensor, loss: Callable[..., torch.Tensor]
) -> torch.Tensor:
    """THREAT's inner loop on groups of images (T, k, ...), through autograd."""
    network, x = copy.deepcopy(model).eval(), images.clone()
    for step in range(THREAT.eta):
        x = x.detach().requires_grad_()
        e = [network(x[:, i]) for i in range(x.shape[1])]
        (gradient,) = torch.autograd.grad(loss(e, step), x)
        with torch.no_grad():
            x = x - THREAT.step(0.2, 4) * gradient.sign()
            x = torch.max(torch.min(x, images + 0.2), images - 0.2).clamp(0, 1)
    return x.detach()
