"""Attacks in L2 balls: PGD and APGD against loops over single samples, and what specs allow."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from dmlbench.attacks.base import ATTACKS, Attack, Gallery
from dmlbench.attacks.engine.apgd import APGD
from dmlbench.attacks.engine.ball import L2Ball
from dmlbench.attacks.engine.pgd import PGD
from dmlbench.common.errors import UserError
from dmlbench.compute.embedding import EmbeddingModel, embed
from dmlbench.core import spec
from dmlbench.core.protocol import Threat
from dmlbench.datasets.base import RetrievalData
from dmlbench.evaluation.collected import Collected
from dmlbench.evaluation.evaluator import drawn_queries
from dmlbench.models.small import C2F2
from tests.evaluations import measured
from tests.every_attack import EVERY
from tests.goals import SAMPLES, Goal, Hinge, Wave
from tests.masks import Wrapped

THREAT = Threat(eps=0.1, alpha=0.03, steps=6, sp_scale=3.0)
NO_L2 = ("square", "nes", "qair", "oa-list", "uap", "top1", "radius")
L2 = [name for name in EVERY if name not in (*NO_L2, "certified")]


@pytest.fixture(params=["hinge", "wave"])
def problem(request: pytest.FixtureRequest) -> tuple[torch.Tensor, Goal]:
    clean, target = torch.rand(SAMPLES, 1, 8, 8), torch.randn(SAMPLES, 8)
    hinge = Hinge(target, torch.rand(SAMPLES) - 0.5)
    return clean, Wave(target) if request.param == "wave" else hinge


def slope(model: EmbeddingModel, x: torch.Tensor, goal: Goal) -> tuple[float, torch.Tensor, bool]:
    """Loss, direction of the gradient, and whether dL/de is zero."""
    x = x.clone().requires_grad_()
    e = embed(model, x)
    loss, de = goal.value_and_grad(e.detach(), 0)
    (dx,) = torch.autograd.grad(e, x, de)
    length = float(dx.double().norm())
    return loss.item(), dx / length if length else dx, not de.any()


def into(x: torch.Tensor, clean: torch.Tensor, eps: float) -> torch.Tensor:
    way = x - clean
    return (clean + way * min(1.0, eps / max(float(way.double().norm()), 1e-30))).clamp(0, 1)


def slow_pgd(
    model: EmbeddingModel, clean: torch.Tensor, goal: Goal, eps: float, alpha: float, steps: int
) -> torch.Tensor:
    x = clean
    for _ in range(steps):
        _, way, _ = slope(model, x, goal)
        x = into(x - alpha * way, clean, eps)
    return x


def slow_apgd(
    model: EmbeddingModel, clean: torch.Tensor, goal: Goal, eps: float, steps: int
) -> torch.Tensor:
    """Algorithm 1 of Croce and Hein with normalised gradients, for one sample."""
    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    checks = [math.ceil(round(100 * one) * steps / 100) for one in p]
    size, x, before = 2 * eps, clean, clean
    value, way, done = slope(model, x, goal)
    best, best_value, best_way = x, value, way
    values, halved, checked, last = [value], False, math.inf, 0
    for k in range(steps):
        if done:
            break
        z = into(x - size * way, clean, eps)
        if k:
            z = into(x + 0.75 * (z - x) + 0.25 * (x - before), clean, eps)
        x, before = z, x
        value, way, done = slope(model, x, goal)
        values.append(value)
        if value < best_value:
            best, best_value, best_way = x, value, way
        if k + 1 in checks and not done:
            gap = k + 1 - last
            up = sum(b < a for a, b in zip(values[-gap - 1 :], values[-gap:], strict=False))
            halved = up <= 0.75 * gap or (not halved and best_value == checked)
            if halved:
                size, x, way, values[-1] = size / 2, best, best_way, best_value
            checked, last = best_value, k + 1
    return best


@pytest.mark.parametrize("active_set", [True, False])
def test_pgd_equals_the_loop_over_single_samples(
    model: EmbeddingModel, problem: tuple[torch.Tensor, Goal], active_set: bool
) -> None:
    clean, goal = problem
    found = PGD(0.8, 0.2, 8, active_set, norm="l2").run(lambda x: embed(model, x), clean, goal)
    for rows in torch.arange(SAMPLES).split(1):
        expected = slow_pgd(model, clean[rows], goal.take(rows), 0.8, 0.2, 8)
        torch.testing.assert_close(found.images[rows], expected, atol=1e-4, rtol=0)
    assert L2Ball.distance(found.images, clean).max() > 0.3


def test_apgd_equals_the_loop_over_single_samples(
    model: EmbeddingModel, problem: tuple[torch.Tensor, Goal]
) -> None:
    """By loss: a step that is halved or not decides by the last bit, and few samples differ."""
    clean, goal = problem
    found = APGD(0.8, 1.6, 12, norm="l2").run(lambda x: embed(model, x), clean, goal)
    far = 0
    for rows in torch.arange(SAMPLES).split(1):
        part = goal.take(rows)
        expected = slow_apgd(model, clean[rows], part, 0.8, 12)
        far += not torch.allclose(found.images[rows], expected, atol=1e-3)
    assert far <= 1


@pytest.mark.parametrize("kind", [PGD, APGD])
def test_neither_batch_order_nor_active_set_change_a_bit(
    model: EmbeddingModel, problem: tuple[torch.Tensor, Goal], kind: Any
) -> None:
    clean, goal = problem
    search = kind(0.8, 0.4, 10, norm="l2")
    whole = search.run(lambda x: embed(model, x), clean, goal)
    full = dataclasses.replace(search, active_set=False)
    assert torch.equal(full.run(lambda x: embed(model, x), clean, goal).images, whole.images)
    order = torch.randperm(SAMPLES)
    parts = [
        search.run(lambda x: embed(model, x), clean[rows], goal.take(rows)).images
        for rows in order.split(3)
    ]
    assert torch.equal(torch.cat(parts), whole.images[order])


def test_each_sample_may_have_a_ball_of_its_own(model: EmbeddingModel) -> None:
    clean, goal = torch.rand(6, 1, 8, 8), Wave(torch.randn(6, 8))
    eps = torch.linspace(0, 2, 6)
    found = APGD(eps, 2 * eps, 8, norm="l2").run(lambda x: embed(model, x), clean, goal).images
    for row, rows in enumerate(torch.arange(6).split(1)):
        alone = APGD(float(eps[row]), 2 * float(eps[row]), 8, norm="l2")
        image = alone.run(lambda x: embed(model, x), clean[rows], goal.take(rows)).images
        assert torch.equal(found[rows], image)
    assert torch.equal(found[0], clean[0])


@pytest.mark.parametrize("kind", [PGD, APGD])
def test_without_a_gradient_nothing_moves(kind: Any) -> None:
    clean, goal = torch.rand(4, 1, 8, 8), Wave(torch.randn(4, 8))
    search = kind(1.0, 0.5, 3, norm="l2")
    found = search.run(lambda x: x.flatten(1)[:, :8].detach() + 0 * x.sum(), clean, goal)
    assert torch.equal(found.images, clean)
    assert found.flat_start.all()


@pytest.fixture(scope="module")
def gallery(model: EmbeddingModel, images: torch.Tensor, tiny: RetrievalData) -> Gallery:
    labels = torch.from_numpy(tiny.test.labels)
    return Gallery(embed(model, images), labels, "N", images=lambda index: images[index])


@pytest.mark.parametrize("name", L2)
def test_every_white_box_attack_hurts_in_an_l2_ball(
    name: str, model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    index = torch.arange(0, 40, 2)
    bare = dataclasses.replace(EVERY[name], norm="l2", eps=2.0)
    attack = bare.resolve(THREAT)
    shown = images[index]
    found = attack.run(model, shown, index, gallery, seed=0)
    column = attack.columns[0]
    attacked, clean = found.outcomes[column.name], found.clean[column.name]
    sign = 1 if column.better == "higher" else -1
    assert sign * attacked.nanmean() < sign * clean.nanmean()
    moved = L2Ball.distance(found.perturbed.images, shown)
    assert 0.5 < moved.max() <= 2 + 1e-5
    assert (found.perturbed.images - shown).abs().max() > 0.1  # of a pixel: more than linf allows
    still = dataclasses.replace(bare, eps=0.0).resolve(THREAT)
    unmoved = still.run(model, shown, index, gallery, seed=0)
    assert torch.equal(unmoved.perturbed.images, shown)
    drawn = dataclasses.replace(bare, restarts=1, steps=1, bits=8).resolve(THREAT)
    grid = (255 * shown).round() / 255
    one = drawn.run(model, grid, index, gallery, seed=0).perturbed.images
    assert L2Ball.distance(one, grid).max() <= 2 + 1e-5


@pytest.mark.parametrize("name", NO_L2)
def test_what_knows_no_l2_says_so(name: str) -> None:
    with pytest.raises(UserError, match=f"attack {name}: norm must be linf") as caught:
        spec.parse(f"{name}:norm=l2,eps=1", ATTACKS)
    assert "\n" not in str(caught.value)


def test_a_radius_in_l2_must_be_given() -> None:
    with pytest.raises(UserError, match="es: norm=l2 needs eps=") as caught:
        spec.parse("es:norm=l2", ATTACKS).resolve(THREAT)
    assert "\n" not in str(caught.value)


def resolved(text: str, **threat: Any) -> Attack:
    return spec.parse(text, ATTACKS).resolve(dataclasses.replace(THREAT, **threat))


def test_steps_have_the_usual_sizes() -> None:
    assert resolved("es:norm=l2,eps=3").alpha == pytest.approx(2.5 * 3 / 6)
    assert resolved("es:norm=l2,eps=3,steps=1").alpha == 3
    assert resolved("es:norm=l2,eps=3", suite="auto").alpha == 6
    assert resolved("es:norm=l2,eps=3,alpha=0.5", suite="auto").alpha == 0.5
    assert resolved("es:norm=l2,eps=0", suite="auto").alpha == THREAT.alpha
    assert resolved("es:eps=0.9", suite="auto").alpha == 1


def test_lengths_above_1_are_for_l2_alone() -> None:
    text = "es:eps=1.5,alpha=2,norm=l2"
    assert spec.canonical(spec.parse(text, ATTACKS)) == text
    assert spec.canonical(spec.parse("es:norm=l2,eps=51/255", ATTACKS)) == "es:eps=0.2,norm=l2"
    for text in ("es:eps=1.5", "es:eps=1.5,norm=linf", "es:alpha=2"):
        with pytest.raises(UserError, match=r"must be float >=? 0 and <= 1, got"):
            spec.parse(text, ATTACKS)
    with pytest.raises(UserError, match="eps must be float >= 0, got -1"):
        spec.parse("es:eps=-1,norm=l2", ATTACKS)
    with pytest.raises(ValueError, match="es: eps must be float >= 0 and <= 1, got 2"):
        spec.check(ATTACKS.get("es")(eps=2.0))
    assert "norm" not in spec.values(resolved("es"))
    assert spec.values(resolved("es:norm=l2,eps=1"))["norm"] == "l2"


def test_the_norm_of_a_transfer_is_its_own() -> None:
    for by in ("margin:norm=l2", "margin:eps=0.1"):
        with pytest.raises(UserError, match="is a key of transfer itself"):
            resolved(f'transfer:from=nowhere,by="{by}"')
    with pytest.raises(UserError, match="norm must be linf"):
        resolved('transfer:from=nowhere,norm=l2,eps=1,by="radius"')


def test_the_radius_that_is_stored_is_in_the_norm_of_the_attack(
    model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    index = torch.from_numpy(drawn_queries(len(images), 8))
    found = resolved("margin:norm=l2,eps=1").run(model, images[index], index, gallery, seed=0)
    collected = Collected(norm="l2")
    collected.add(images[index], found, found.outcomes, found.clean)
    expected = L2Ball.distance(found.perturbed.images, images[index]).max()
    assert collected.radius == pytest.approx(float(expected))
    assert 0.5 < collected.radius <= 1 + 1e-5


def test_noise_in_l2_is_random_directions(tiny: RetrievalData) -> None:
    """A network whose gradient points the wrong way: noise of length eps does better."""

    def turned(x: torch.Tensor) -> torch.Tensor:
        return 2 * x.detach() - x

    attack = resolved("tma:norm=l2,eps=1,steps=4", suite="auto")
    torch.manual_seed(0)
    network = C2F2(dim=64).build(1, 8).backbone
    with measured(tiny, EmbeddingModel(Wrapped(network, before=turned), "N")) as found:
        one = found.attack(attack, 3, "tma", queries=12)
    (flag,) = one.findings["flags"]
    assert flag["name"] == "noise"
    assert "under the worst of 5 random directions of length eps" in flag["says"]


def test_the_mean_over_draws_is_searched_in_the_same_ball(model: EmbeddingModel) -> None:
    clean, goal, drawn = torch.rand(6, 1, 8, 8), Wave(torch.randn(6, 8)), []

    def noisy(x: torch.Tensor) -> torch.Tensor:
        drawn.append(len(x))
        return embed(model, x) + 0.01 * len(drawn)

    found = APGD(1.0, 2.0, 5, draws=3, norm="l2").run(noisy, clean, goal)
    assert len(drawn) == 3 * 6  # with the judgement of the last images
    L2Ball.check(clean, found.images, 1.0)
    assert L2Ball.distance(found.images, clean).max() > 0.5
