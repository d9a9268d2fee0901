"""APGD: against a loop over single samples, its active set, and what it refuses."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlbench.attacks.engine.apgd import APGD, schedule
from dmlbench.attacks.engine.pgd import PGD
from dmlbench.common.errors import CellError
from dmlbench.compute.embedding import EmbeddingModel, embed
from tests.goals import SAMPLES, Goal, Hinge, Wave

STEPS = 30


def clip(x: torch.Tensor, clean: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.max(torch.min(x, clean + eps), clean - eps).clamp(0, 1)


def slow_apgd(
    model: EmbeddingModel,
    clean: torch.Tensor,
    goal: Goal,
    eps: float,
    steps: int,
    start: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, int]]:
    """Algorithm 1 of the paper for one sample (1, C, H, W), minimising; and what happened."""
    events = {"halved": 0, "vain": 0, "done": 0}
    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    w = [math.ceil(round(100 * one) * steps / 100) for one in p]

    def f(x: torch.Tensor) -> tuple[float, torch.Tensor, bool]:
        x = x.clone().requires_grad_()
        e = embed(model, x)
        loss, de = goal.value_and_grad(e.detach(), 0)
        (dx,) = torch.autograd.grad(e, x, de)
        return loss.item(), dx, not de.any()

    step = 2 * eps
    x = clip(clean if start is None else start, clean, eps)
    value, gradient, done = f(x)
    best, best_value, best_gradient = x, value, gradient
    values, before, halved, value_at_check, last = [value], x, False, math.inf, 0
    for k in range(steps):
        if done:
            events["done"] += 1
            break
        z = clip(x - step * gradient.sign(), clean, eps)
        moved = z
        if k:
            moved = clip(z.sub(x).mul(0.75).add(x - before, alpha=0.25).add(x), clean, eps)
        x, before = moved, x
        value, gradient, done = f(x)
        values.append(value)
        if value < best_value:
            best, best_value, best_gradient = x, value, gradient
        if k + 1 in w and not done:
            gap = k + 1 - last
            up = sum(b < a for a, b in zip(values[-gap - 1 :], values[-gap:], strict=False))
            vain = not halved and best_value == value_at_check
            events["vain"] += vain and up > 0.75 * gap
            halved = up <= 0.75 * gap or vain
            if halved:
                events["halved"] += 1
                step /= 2
                x, gradient = best, best_gradient
                values[-1] = best_value
            value_at_check, last = best_value, k + 1
    return best, events


@pytest.fixture(params=["hinge", "wave"])
def problem(request: pytest.FixtureRequest) -> tuple[torch.Tensor, Goal]:
    clean, target = torch.rand(SAMPLES, 1, 8, 8), torch.randn(SAMPLES, 8)
    hinge = Hinge(target, torch.rand(SAMPLES) - 0.5)
    return clean, Wave(target) if request.param == "wave" else hinge


@pytest.mark.parametrize(
    ("active_set", "from_noise"),
    [
        (True, False),
        (False, True),
        pytest.param(True, True, marks=pytest.mark.slow),
        pytest.param(False, False, marks=pytest.mark.slow),
    ],
)
def test_equals_the_loop_over_single_samples_to_the_bit(
    model: EmbeddingModel,
    problem: tuple[torch.Tensor, Goal],
    active_set: bool,
    from_noise: bool,
) -> None:
    clean, goal = problem
    start = clean + 0.3 * torch.randn_like(clean) if from_noise else None
    apgd = APGD(0.1, 0.2, STEPS, active_set)
    found = apgd.run(lambda x: embed(model, x), clean, goal, start)
    happened = {"halved": 0, "vain": 0, "done": 0}
    for row in range(len(clean)):
        rows = torch.tensor([row])
        begin = None if start is None else start[rows]
        expected, events = slow_apgd(model, clean[rows], goal.take(rows), 0.1, STEPS, begin)
        assert torch.equal(found.images[rows], expected), row
        happened = {name: happened[name] + count for name, count in events.items()}
    assert happened["halved"] > SAMPLES
    assert (happened["done"] > 0) == isinstance(goal, Hinge)
    assert found.full_passes == SAMPLES * STEPS
    saves = active_set and isinstance(goal, Hinge)
    assert found.passes < found.full_passes if saves else found.passes == found.full_passes


@pytest.mark.parametrize("batch", [1, 7, SAMPLES])
def test_batch_size_and_order_change_no_bit(
    model: EmbeddingModel, problem: tuple[torch.Tensor, Goal], batch: int
) -> None:
    clean, goal = problem
    apgd = APGD(0.1, 0.2, 20)
    whole = apgd.run(lambda x: embed(model, x), clean, goal).images
    order = torch.randperm(SAMPLES)
    parts = [
        apgd.run(lambda x: embed(model, x), clean[rows], goal.take(rows)).images
        for rows in order.split(batch)
    ]
    assert torch.equal(torch.cat(parts), whole[order])


def test_each_sample_may_have_a_ball_of_its_own(model: EmbeddingModel) -> None:
    clean, goal = torch.rand(6, 1, 8, 8), Wave(torch.randn(6, 8))
    eps = torch.linspace(0, 0.2, 6)
    found = APGD(eps, 2 * eps, 12).run(lambda x: embed(model, x), clean, goal).images
    for row in range(6):
        rows = torch.tensor([row])
        alone = APGD(float(eps[row]), 2 * float(eps[row]), 12)
        image = alone.run(lambda x: embed(model, x), clean[rows], goal.take(rows)).images
        assert torch.equal(found[rows], image)
    assert torch.equal(found[0], clean[0])


def test_a_longer_search_finds_no_less_and_the_best_is_what_is_returned(
    model: EmbeddingModel,
) -> None:
    clean, goal = torch.rand(24, 1, 8, 8), Wave(torch.randn(24, 8))

    def loss(images: torch.Tensor) -> torch.Tensor:
        return goal.value_and_grad(embed(model, images), 0)[0]

    apgd = loss(APGD(0.1, 0.2, 40).run(lambda x: embed(model, x), clean, goal).images)
    pgd = loss(PGD(0.1, 0.04, 40).run(lambda x: embed(model, x), clean, goal).images)
    assert (apgd <= loss(clean)).all()
    assert apgd.mean() < pgd.mean()


def test_one_step_reaches_the_surface_of_the_ball(model: EmbeddingModel) -> None:
    clean, goal = torch.full((8, 1, 8, 8), 0.5), Hinge(torch.randn(8, 8), torch.full((8,), -9.0))
    found = APGD(0.1, 0.2, 1).run(lambda x: embed(model, x), clean, goal)
    moved = (found.images - clean).abs()
    torch.testing.assert_close(moved[moved > 0], torch.full_like(moved[moved > 0], 0.1))
    assert (moved > 0).any()
    assert found.passes == 8


@settings(max_examples=25)
@given(eps=st.floats(0, 1), steps=st.integers(1, 6), seed=st.integers(0, 999))
def test_stays_in_the_ball_and_in_the_pixel_range(
    model: EmbeddingModel, eps: float, steps: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(6, 1, 8, 8, generator=generator)
    start = clean + torch.randn(6, 1, 8, 8, generator=generator)
    before = clean.clone(), start.clone()
    goal = Wave(torch.randn(6, 8, generator=generator))
    found = APGD(eps, 2 * eps, steps).run(lambda x: embed(model, x), clean, goal, start).images
    assert (found - clean).abs().max() <= eps + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(clean, before[0])  # the caller's images are not touched
    assert torch.equal(start, before[1])


@pytest.mark.parametrize("steps", [1, 2, 7, 32, 100])
def test_checkpoints_are_those_of_the_paper(steps: int) -> None:
    shares = [0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99]
    places = sorted({math.ceil(round(share * 100) * steps / 100) for share in shares})
    gaps = [b - a for a, b in zip([0, *places], places, strict=False)]
    assert schedule(steps) == dict(zip(places, gaps, strict=True))


def test_an_empty_batch_is_no_work() -> None:
    goal = Hinge(torch.empty(0, 8), torch.empty(0))
    found = APGD(0.1, 0.2, 3).run(lambda x: x.flatten(1), torch.empty(0, 1, 2, 2), goal)
    assert found.passes == 0
    assert found.images.shape == (0, 1, 2, 2)


def test_a_loss_that_is_not_finite_fails(model: EmbeddingModel) -> None:
    goal = Hinge(torch.randn(8, 8), torch.zeros(8))
    bad = dataclasses.replace(goal, offset=torch.full((8,), torch.nan))
    with pytest.raises(CellError, match="not finite"):
        APGD(0.1, 0.2, 3).run(lambda x: embed(model, x), torch.rand(8, 1, 8, 8), bad)


def test_a_network_without_gradients_starts_flat(model: EmbeddingModel) -> None:
    clean, goal = torch.rand(4, 1, 8, 8), Wave(torch.randn(4, 8))
    found = APGD(0.1, 0.2, 3).run(lambda x: embed(model, x.detach()) + 0 * x.sum(), clean, goal)
    assert found.flat_start.all()
    assert torch.equal(found.images, clean)
