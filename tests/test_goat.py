"""One step of GOAT equals a slow version that follows its authors' function."""

from __future__ import annotations

import copy

import pytest
import torch

from dmlbench.datasets.base import RetrievalData
from dmlbench.defenses.goat import GuidedObjective, GuidedOnlineTraining
from dmlbench.defenses.samplers import sample
from tests.steps import GAMMA, THREAT, agrees, d, make_batch, network

EPS = 0.2


@pytest.mark.parametrize("guides", [1, 4])
def test_a_step(tiny: RetrievalData, guides: int) -> None:
    model = network()
    batch = make_batch(model, tiny)
    defense = GuidedOnlineTraining(guides=guides).resolve(THREAT, "N")
    objective = defense.objective(batch, "N")
    images, clean, labels = batch.images, batch.embeddings, batch.labels
    for i in range(len(images)):
        for guide in objective.push[i]:
            places = [j for j in range(len(images)) if torch.equal(guide, clean[j])]
            assert any(j != i and labels[j] == labels[i] for j in places)
        others = [j for j in range(len(images)) if j != i]
        furthest = max(float((clean[i] - clean[j]).norm()) for j in others)
        assert float((clean[i] - objective.pull[i]).norm()) == pytest.approx(furthest, abs=1e-5)

    noise = torch.rand(images.shape, generator=batch.generator)
    low, high = (images - EPS).clamp(min=0), (images + EPS).clamp(max=1)
    x = (images + EPS * (2 * noise - 1)).clamp(low, high)
    still = copy.deepcopy(model).eval()
    for _ in range(THREAT.eta):
        x = x.detach().requires_grad_()
        e = still(x)
        loss = ((e - objective.pull) ** 2).sum()
        for k in range(guides):
            loss = loss - ((e - objective.push[:, k]) ** 2).sum()
        (gradient,) = torch.autograd.grad(loss, x)
        x = (x.detach() - THREAT.step(EPS, THREAT.eta) * gradient.sign()).clamp(low, high)
    e = model(x)
    t = sample("random", e.detach(), labels, "N", GAMMA, batch.generator)
    h = d(e[t.anchor], e[t.positive]) - d(e[t.anchor], e[t.negative])
    batch.generator.manual_seed(0)
    agrees(model, batch, defense, (h + GAMMA).clamp(min=0).mean())
    assert defense.label == "GOAT[R]"
    assert defense.training_cost == THREAT.eta + 1


def test_the_gradient_is_that_of_the_loss() -> None:
    draw = torch.Generator().manual_seed(0)
    e = torch.randn(3, 1, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    objective = GuidedObjective(
        torch.randn(3, 4, 5, generator=draw, dtype=torch.float64),
        torch.randn(3, 5, generator=draw, dtype=torch.float64),
    )
    loss, gradient = objective.value_and_grad(e, 0)
    (slow,) = torch.autograd.grad(loss.sum(), e)
    torch.testing.assert_close(gradient, slow)
