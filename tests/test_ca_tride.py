"""One step of CA-TRIDE equals a slow version that follows its authors' functions, sum by sum."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from dmlbench.common.errors import UserError
from dmlbench.compute.distributed import World
from dmlbench.compute.embedding import EmbeddingModel
from dmlbench.core import spec
from dmlbench.datasets.base import RetrievalData
from dmlbench.defenses.base import DEFENSES, Batch, State
from dmlbench.defenses.ca_tride import (
    TURN,
    AnchorPerturbation,
    CandidatePerturbation,
    WholeBatch,
    nearest_half,
    soft_maximum,
)
from dmlbench.defenses.samplers import Triplets, sample
from tests.steps import GAMMA, THREAT, flat_gradient, make_batch, network

EPS, ALPHA, ETA, PROGRESS = 0.2, 0.06, 4, 0.75


def d(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b + 1e-6).norm(dim=1)


def slow_soft_maximum(distances: torch.Tensor, sharpness: float) -> torch.Tensor:
    weights = [torch.exp(sharpness * (one - distances.max())) for one in distances]
    total = sum(w * one for w, one in zip(weights, distances, strict=True))
    return torch.as_tensor(total / sum(weights))


def slow_half(distances: torch.Tensor) -> torch.Tensor:
    near = sorted(distances, key=lambda one: float(one.detach()))[: len(distances) // 2]
    return torch.stack(near).mean()


def slow_perturb(
    model: EmbeddingModel, triplets: torch.Tensor, anchors: bool, sharpness: float
) -> tuple[torch.Tensor, list[float]]:
    """The images (T, 3, ...) of triplets after PGD, and its losses; the model is in eval mode."""
    a0, p0, n0 = triplets.unbind(1)
    start = triplets[:, :1] if anchors else triplets[:, 1:]
    x, losses = start.clone(), []
    for _ in range(ETA):
        x = x.detach().requires_grad_()
        if anchors:
            a, p, n = model(x[:, 0]), model(p0), model(n0)
        else:
            a, p, n = model(a0), model(x[:, 0]), model(x[:, 1])
        to_p = slow_soft_maximum(d(p, a), sharpness)
        to_n = slow_soft_maximum(d(a, n), sharpness)
        if anchors:
            weight = math.exp(-max(0.0, float((to_n - to_p).detach())))
            near = (slow_half(d(a, n)) - d(a, model(a0)).mean()).relu()
            loss = (to_p - to_n).relu() + weight * near
        else:
            loss = (to_n - to_p).relu()
        losses.append(float(loss.detach()))
        if loss < 1e-5:
            break
        (gradient,) = torch.autograd.grad(loss, x)
        with torch.no_grad():
            x = x - ALPHA * PROGRESS * gradient.sign()
            x = torch.max(torch.min(x, start + EPS), start - EPS).clamp(0, 1)
    result = triplets.clone()
    result[:, slice(0, 1) if anchors else slice(1, 3)] = x.detach()
    return result, losses


def batch_at(model: EmbeddingModel, data: RetrievalData, progress: float) -> Batch:
    return dataclasses.replace(make_batch(model, data), progress=progress)


def drawn(batch: Batch, window: float) -> Triplets:
    """Semihard triplets; the generator is put back."""
    state = batch.generator.get_state()
    found = sample("semihard", batch.embeddings, batch.labels, "N", window, batch.generator)
    batch.generator.set_state(state)
    return found


@pytest.mark.parametrize("nearest", ["second", "every"])
@pytest.mark.parametrize("sharpness", [10.0, 2.0])
@pytest.mark.parametrize("anchors", [False, True])
def test_a_step(tiny: RetrievalData, anchors: bool, sharpness: float, nearest: str) -> None:
    model = network()
    batch = batch_at(model, tiny, PROGRESS)
    text = f"ca-tride:eta={ETA},lambda={sharpness},nearest={nearest}"
    defense = spec.parse(text, DEFENSES).resolve(THREAT, "N")
    t = drawn(batch, GAMMA * (1 - PROGRESS / 2) ** 2)
    model.eval()
    x, losses = slow_perturb(model, batch.images[t.stack()], anchors, sharpness)
    model.train()
    assert losses[0] > losses[-1]  # there was something to minimise
    a, p, n = (model(x[:, i]) for i in range(3))
    expected = (d(a, p) - d(a, n) + GAMMA).clamp(min=0).mean()
    if anchors or nearest == "every":
        expected = expected + 0.5 * (slow_half(d(a, p)) - slow_half(d(a, n)) + 0.04).clamp(min=0)
    reference = torch.cat(
        [g.flatten() for g in torch.autograd.grad(expected, list(model.parameters()))]
    )
    state: State = {TURN: torch.tensor(float(anchors))}
    step = defense.step(model, batch, state)
    assert step.loss is not None
    assert step.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert (flat_gradient(model, step) - reference).norm() <= 1e-3 * reference.norm()
    assert step.full_passes == step.passes == len(t) * ETA
    assert float(state[TURN]) == float(not anchors)


def test_the_turns_begin_with_the_candidates(tiny: RetrievalData) -> None:
    """And the first epoch perturbs nothing."""
    model, state = network(), State()
    defense = spec.parse("ca-tride", DEFENSES).resolve(THREAT, "N")
    assert spec.parse("ca-tride", DEFENSES).resolve(THREAT, "E").margin == defense.margin == 0.2
    turns = []
    for _ in range(3):
        batch = batch_at(model, tiny, 0.0)
        t = drawn(batch, GAMMA)
        step = defense.step(model, batch, state)
        turns.append(float(state[TURN]))
        assert (step.passes, step.full_passes) == (0, 16 * len(t))
        assert step.loss is not None
        e = model(batch.images)
        a, p, n = e[t.anchor], e[t.positive], e[t.negative]
        expected = (d(a, p) - d(a, n) + GAMMA).clamp(min=0).mean()
        assert step.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert turns == [1, 0, 1]
    assert defense.training_cost == 17
    assert defense.label == "CA-TRIDE"


def test_pgd_stops_where_the_loss_is_small() -> None:
    """Positives that are farther than the negatives leave a CAP batch nothing to do."""
    anchor = torch.eye(3)[None, :1].expand(4, 1, 3)
    clean = torch.cat([anchor, -anchor, anchor], 1)
    objective = CandidatePerturbation(clean, 10.0, World())
    loss, gradient = objective.value_and_grad(clean[:, 1:], 0)
    assert not loss.any()
    assert not gradient.any()
    loss, gradient = objective.value_and_grad(-clean[:, 1:], 0)
    assert loss.tolist() == pytest.approx([2] * 4, abs=1e-4)
    assert gradient.flatten(1).any(1).all()


@pytest.mark.parametrize("kind", [CandidatePerturbation, AnchorPerturbation])
def test_a_process_gets_the_gradients_of_its_share(kind: type[WholeBatch]) -> None:
    """Of the loss on the triplets of all processes."""
    draw = torch.Generator().manual_seed(0)
    clean = torch.nn.functional.normalize(torch.randn(7, 3, 4, generator=draw), dim=2)
    moved = slice(0, 1) if kind is AnchorPerturbation else slice(1, 3)
    e = torch.nn.functional.normalize(torch.randn(7, 3, 4, generator=draw), dim=2)[:, moved]
    e = e.flip(1)  # so that the loss is not zero

    class Second(World):
        def gather(self, rows: torch.Tensor, n: int) -> torch.Tensor:
            assert torch.equal(rows, e[self.share(n)])
            return e

    alone = kind(clean, 10.0, World()).value_and_grad(e, 0)
    shared = kind(clean, 10.0, Second(1, 2)).value_and_grad(e[3:], 0)
    assert alone[0][0] > 0
    assert torch.equal(shared[0], alone[0][3:])
    assert torch.equal(shared[1], alone[1][3:])


@pytest.mark.parametrize("sharpness", [0.5, 10.0, 200.0])
def test_the_soft_maximum_is_between_mean_and_maximum(sharpness: float) -> None:
    distances = torch.rand(40, generator=torch.Generator().manual_seed(0)) * 2
    found = soft_maximum(distances, sharpness)
    assert distances.mean() < found <= distances.max()
    torch.testing.assert_close(found, slow_soft_maximum(distances, sharpness))
    torch.testing.assert_close(nearest_half(distances), slow_half(distances))


def test_it_refuses_the_cosine_distance() -> None:
    with pytest.raises(UserError, match="N and E"):
        spec.parse("ca-tride", DEFENSES).resolve(THREAT, "C")
