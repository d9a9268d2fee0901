"""One step of each defense equals a slow version that follows the equations of the paper."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any
from unittest.mock import patch

import pytest
import torch

from dmlbench.attacks.engine.optimizer import Perturbed
from dmlbench.attacks.engine.pgd import PGD
from dmlbench.common.errors import UserError
from dmlbench.compute.distributed import World
from dmlbench.compute.embedding import EmbeddingModel
from dmlbench.core import spec
from dmlbench.core.protocol import TrainingThreat
from dmlbench.datasets.base import RetrievalData
from dmlbench.defenses import base
from dmlbench.defenses.act import AntiCollapseTriplet
from dmlbench.defenses.base import DEFENSES, Batch, Defense, State, hardness
from dmlbench.defenses.est import EmbeddingShiftedTriplet
from dmlbench.defenses.hm import HardnessManipulation, HardnessObjective
from dmlbench.defenses.none import NoDefense
from dmlbench.defenses.samplers import Triplets, sample
from dmlbench.models.small import C2F2
from dmlbench.training.batches import pair_batches
from dmlbench.training.job import anchors
from tests.steps import GAMMA, THREAT, flat_gradient, make_batch, mined, slow_pgd


@pytest.fixture
def model() -> EmbeddingModel:
    torch.manual_seed(1)
    return C2F2(dim=8).build(1, 8).train()


def slow_perturb(
    model: EmbeddingModel, images: torch.Tensor, h_d: torch.Tensor, defense: HardnessManipulation
) -> torch.Tensor:
    """The inner problem for all triplets and all steps, through autograd."""
    network = copy.deepcopy(model).eval()
    x = images.clone()
    for _ in range(defense.eta or 0):
        x = x.detach().requires_grad_()
        a, p, n = (network(x[:, i]) for i in range(3))
        h = (a - p).norm(dim=1) - (a - n).norm(dim=1)
        loss = (h_d - h).clamp(min=0).square().mean()
        (gradient,) = torch.autograd.grad(loss, x)
        with torch.no_grad():
            x = x - (defense.alpha or 0) * gradient.sign()
            x = torch.max(torch.min(x, images + (defense.eps or 0)), images - (defense.eps or 0))
            x = x.clamp(0, 1)
    return x.detach()


def slow_hm_loss(
    model: EmbeddingModel, batch: Batch, t: Triplets, x: torch.Tensor, ics: float
) -> torch.Tensor:
    network = copy.deepcopy(model).train()
    a, p, n = (network(x[:, i]) for i in range(3))
    loss = ((a - p).norm(dim=1) - (a - n).norm(dim=1) + GAMMA).clamp(min=0).mean()
    if ics:
        a0, p0 = network(batch.images[t.anchor]), network(batch.images[t.positive])
        inner = (a0 - a).norm(dim=1) - (a0 - p0).norm(dim=1)
        loss = loss + ics * inner.clamp(min=0).mean()
    loss.backward()
    model.slow_gradient = torch.cat([q.grad.flatten() for q in network.parameters()])  # type: ignore[assignment]
    return loss.detach()


@pytest.mark.parametrize("destination", ["lga", "semihard", "softhard", "random"])
@pytest.mark.parametrize(("source", "ics"), [("softhard", 0.5), ("semihard", 0.0), ("random", 2.0)])
def test_a_step_of_hm_equals_the_equations(
    model: EmbeddingModel, tiny: RetrievalData, source: str, destination: str, ics: float
) -> None:
    if source == destination:
        return
    defense = HardnessManipulation(source=source, destination=destination, ics=ics)
    defense = defense.resolve(THREAT, "N")
    batch = make_batch(model, tiny)
    state = {"previous_loss": torch.tensor(0.07)}
    t = mined(defense, source, batch)
    before = batch.generator.get_state()
    if destination == "lga":
        h_d = torch.full((len(t),), -GAMMA * min(0.07, GAMMA) / GAMMA)
    else:
        defense.mine(source, batch, "N")  # the source is drawn first
        d = defense.mine(destination, batch, "N")
        e = batch.embeddings
        h_d = (e[d.anchor] - e[d.positive]).norm(dim=1) - (e[d.anchor] - e[d.negative]).norm(dim=1)
    batch.generator.set_state(before)
    images = batch.images[t.stack()]
    expected = slow_perturb(model, images, h_d, defense)
    objective = HardnessObjective("N", h_d)
    found = defense.perturb(model, images, objective)
    assert torch.equal(found.images, expected)  # to the bit, though triplets left the batch
    known = defense.perturb(model, images, objective, batch.embeddings[t.stack()])
    assert torch.equal(known.images, expected)  # some of them before the first pass
    torch.testing.assert_close(known.last_embeddings, found.last_embeddings, rtol=0, atol=0)
    with patch.object(base, "PGD", functools.partial(PGD, active_set=False)):
        whole = defense.perturb(model, images, objective, batch.embeddings[t.stack()])
    assert torch.equal(whole.images, expected)
    assert whole.passes == whole.full_passes
    step = defense.step(model, batch, state)
    slow = slow_hm_loss(model, batch, t, expected, ics)
    assert step.loss is not None
    assert step.loss.item() == pytest.approx(slow.item(), rel=1e-5)
    gradient = flat_gradient(model, step)
    reference = model.slow_gradient
    assert (gradient - reference).norm() <= 1e-5 * reference.norm()  # type: ignore[operator]
    assert step.full_passes == 4 * len(t)
    done = int((objective.value_and_grad(batch.embeddings[t.stack()], 0)[0] == 0).sum())
    assert step.passes == known.passes == found.passes - done
    reused = dataclasses.replace(defense, reuse=True)
    batch.generator.set_state(before)
    quick = reused.step(model, batch, {"previous_loss": torch.tensor(0.07)})
    assert quick.loss is not None
    assert quick.loss.item() == pytest.approx(step.loss.item(), rel=1e-6)
    assert (flat_gradient(model, quick) - reference).norm() <= 1e-5 * reference.norm()  # type: ignore[operator]
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_the_active_set_of_hm_saves_passes(model: EmbeddingModel, tiny: RetrievalData) -> None:
    batch = make_batch(model, tiny)
    defense = HardnessManipulation(destination="lga", eta=16).resolve(THREAT, "N")
    images = batch.images[mined(defense, "softhard", batch).stack()]

    def to(level: float) -> Perturbed:
        goal = HardnessObjective("N", torch.full((len(images),), level))
        return defense.perturb(model, images, goal)

    easy = to(-0.2)
    assert easy.passes < 0.7 * easy.full_passes
    already_there = to(-9.0)
    assert torch.equal(already_there.images, images)
    assert already_there.passes == len(images)  # one pass to see it
    goal = HardnessObjective("N", torch.full((len(images),), -9.0))
    seen = defense.perturb(model, images, goal, images.new_zeros(len(images), 3, 8))
    assert torch.equal(seen.images, images)
    assert seen.passes == 0
    assert not seen.flat_start.any()  # the loss has no slope, so nothing is hidden


@pytest.mark.parametrize("metric", ["N", "E", "C"])
def test_the_hardness_gradient_is_autograds(metric: str) -> None:
    e = torch.randn(7, 3, 5, dtype=torch.float64)
    if metric != "E":
        e = torch.nn.functional.normalize(e, dim=2)
    e.requires_grad_()
    h_d = torch.linspace(-2, 2, 7, dtype=torch.float64)
    loss = (h_d - hardness(e, metric)).clamp(min=0).square()  # type: ignore[arg-type]
    (expected,) = torch.autograd.grad(loss.sum(), e)
    value, gradient = HardnessObjective(metric, h_d).value_and_grad(e.detach(), 0)  # type: ignore[arg-type]
    torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("fields", "previous", "expected"),
    [
        ({}, None, -GAMMA),
        ({}, 5.0, -GAMMA),
        ({}, 0.05, -0.05),
        ({}, 0.0, 0.0),
        ({"u": 2.2}, 0.11, -GAMMA * 0.05),
        ({"destination": "g_2"}, 0.05, -GAMMA * 0.25**2),
        ({"destination": "g_half"}, 0.05, -GAMMA * 0.25**0.5),
        ({"destination": "constant", "level": -0.1}, 0.05, -0.1),
    ],
)
def test_destinations_that_need_no_triplets(
    model: EmbeddingModel,
    tiny: RetrievalData,
    fields: dict[str, Any],
    previous: float | None,
    expected: float,
) -> None:
    defense = HardnessManipulation(**fields).resolve(THREAT, "N")
    state: State = {} if previous is None else {"previous_loss": torch.tensor(previous)}
    goal = defense.hardness_goal(make_batch(model, tiny), state, "N")
    assert goal.item() == pytest.approx(expected)


def test_g_b_raises_a_samplers_hardness_as_the_loss_falls(
    model: EmbeddingModel, tiny: RetrievalData
) -> None:
    batch = make_batch(model, tiny)
    plain = HardnessManipulation(destination="semihard").resolve(THREAT, "N")
    raised = HardnessManipulation(destination="semihard", xi=0.1).resolve(THREAT, "N")
    found = []
    for defense in (plain, raised):
        batch.generator.manual_seed(5)
        found.append(defense.hardness_goal(batch, {"previous_loss": torch.tensor(0.05)}, "N"))
    torch.testing.assert_close(found[1], found[0] + 0.1 * (1 - 0.05 / GAMMA))
    assert raised.label == "HM[S,g_B(M)]&ICS"


@pytest.mark.parametrize("sampler", ["random", "softhard", "hardest"])
def test_a_step_of_est_equals_the_equations(
    model: EmbeddingModel, tiny: RetrievalData, sampler: str
) -> None:
    batch = make_batch(model, tiny)

    def shift(e: list[torch.Tensor], step: int) -> torch.Tensor:
        origin = batch.embeddings + (1e-7 if step == 0 else 0)
        return -(e[0] - origin).norm(dim=1).sum()

    x = slow_pgd(model, batch.images[:, None], shift)[:, 0]
    step = EmbeddingShiftedTriplet(sampler=sampler).resolve(THREAT, "N").step(model, batch, {})
    network = copy.deepcopy(model).train()
    e = network(x)
    batch.generator.manual_seed(0)
    t = sample(sampler, e.detach(), batch.labels, "N", GAMMA, batch.generator)
    h = (e[t.anchor] - e[t.positive]).norm(dim=1) - (e[t.anchor] - e[t.negative]).norm(dim=1)
    expected = (h + GAMMA).clamp(min=0).mean()
    reference = torch.cat(
        [g.flatten() for g in torch.autograd.grad(expected, network.parameters())]
    )
    assert step.loss is not None
    assert step.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (flat_gradient(model, step) - reference).norm() <= 1e-5 * reference.norm()


@pytest.mark.parametrize("sampler", ["random", "softhard"])
def test_a_step_of_act_equals_the_equations(
    model: EmbeddingModel, tiny: RetrievalData, sampler: str
) -> None:
    batch = make_batch(model, tiny)
    defense = AntiCollapseTriplet(sampler=sampler).resolve(THREAT, "N")
    t = mined(defense, sampler, batch)
    images = batch.images[torch.stack([t.positive, t.negative], 1)]
    x = slow_pgd(model, images, lambda e, _: (e[0] - e[1]).norm(dim=1).mean())
    step = defense.step(model, batch, {})
    network = copy.deepcopy(model).train()
    a, p, n = network(batch.images[t.anchor]), network(x[:, 0]), network(x[:, 1])
    h = (a - p).norm(dim=1) - (a - n).norm(dim=1)
    expected = (h + GAMMA).clamp(min=0).mean()
    reference = torch.cat(
        [g.flatten() for g in torch.autograd.grad(expected, network.parameters())]
    )
    assert step.loss is not None
    assert step.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (flat_gradient(model, step) - reference).norm() <= 1e-5 * reference.norm()
    assert defense.training_cost == 5


def test_hm_records_the_adversarial_loss_without_ics(
    model: EmbeddingModel, tiny: RetrievalData
) -> None:
    with_ics: State = {}
    without: State = {}
    HardnessManipulation(ics=5).resolve(THREAT, "N").step(model, make_batch(model, tiny), with_ics)
    step = (
        HardnessManipulation(ics=0)
        .resolve(THREAT, "N")
        .step(model, make_batch(model, tiny), without)
    )
    assert with_ics["previous_loss"] == without["previous_loss"] == step.loss


@pytest.mark.parametrize("sampler", ["random", "semihard", "softhard", "distance", "hardest"])
def test_hm_with_its_source_as_destination_is_plain_training(
    model: EmbeddingModel, tiny: RetrievalData, sampler: str
) -> None:
    same = HardnessManipulation(source=sampler, destination=sampler, ics=0).resolve(THREAT, "N")
    plain = NoDefense(sampler=sampler).resolve(THREAT, "N")
    a = same.step(model, make_batch(model, tiny), {})
    b = plain.step(model, make_batch(model, tiny), {})
    assert a.loss is not None
    assert b.loss is not None
    assert torch.equal(a.loss, b.loss)
    assert torch.equal(flat_gradient(model, a), flat_gradient(model, b))
    assert a.full_passes == 0
    assert same.training_cost == 1


@pytest.mark.parametrize(
    "defense",
    [NoDefense(), HardnessManipulation(), EmbeddingShiftedTriplet(), AntiCollapseTriplet()],
)
def test_a_batch_of_one_class_is_no_step(
    model: EmbeddingModel, tiny: RetrievalData, defense: Defense
) -> None:
    batch = make_batch(model, tiny)
    images, labels, embeddings = batch.images[:2], batch.labels[:2], batch.embeddings[:2]
    lone = Batch(images, labels, lambda: embeddings, torch.Generator(), World())
    assert defense.resolve(THREAT, "N").step(model, lone, {}).loss is None


@pytest.mark.parametrize("same_in_training", [True, False])
def test_none_mines_in_eval_mode_if_training_embeds_differently(
    tiny: RetrievalData, same_in_training: bool
) -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten()]
    network = torch.nn.Sequential(
        *layers[: 1 if same_in_training else 2], layers[2], torch.nn.LazyLinear(6)
    )
    model = EmbeddingModel(network, "N", same_in_training=same_in_training)
    model(torch.rand(2, 1, 8, 8))
    batch = make_batch(model, tiny)
    known, asked = batch.embeddings, []
    batch = dataclasses.replace(batch, embed=lambda: asked.append(1) or known)
    step = NoDefense(sampler="hardest").resolve(THREAT, "N").step(model, batch, {})
    assert bool(asked) == (not same_in_training)
    triplets = sample("hardest", known, batch.labels, "N", GAMMA, torch.Generator()).stack()
    expected = (hardness(model(batch.images)[triplets], "N") + GAMMA).relu().mean()
    torch.testing.assert_close(step.loss, expected)
    e = torch.nn.functional.normalize(known, dim=1)
    cosines = (e @ e.T)[~torch.eye(len(e), dtype=torch.bool)]
    torch.testing.assert_close(step.mean_cosine, cosines.mean())


def test_labels_are_the_papers() -> None:
    assert NoDefense().label == "N/A[R]"
    assert EmbeddingShiftedTriplet().label == "EST[R]"
    assert AntiCollapseTriplet(sampler="softhard").label == "ACT[S]"
    assert HardnessManipulation(destination="g_half", ics=0).label == "HM[S,g_1/2]"
    assert HardnessManipulation(destination="constant", level=-0.1).label == "HM[S,-0.1]&ICS"
    assert HardnessManipulation().label == "HM[S,g_LGA]&ICS"
    assert HardnessManipulation(source="random", destination="semihard", ics=0).label == "HM[R,M]"


def test_margins_follow_the_metric() -> None:
    assert [NoDefense().resolve(THREAT, m).margin for m in ("N", "C", "E")] == [0.2, 0.2, 1.0]
    assert NoDefense(margin=0.3).resolve(THREAT, "E").margin == 0.3


@pytest.mark.parametrize(
    "text",
    [
        "none:sampler=distance",
        "act:sampler=distance",
        "hm:source=distance",
        "hm:destination=distance",
    ],
)
def test_a_sampler_for_embeddings_of_length_1_is_refused_for_others(text: str) -> None:
    defense = spec.parse(text, DEFENSES)
    for metric in ("N", "C"):
        defense.resolve(THREAT, metric)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="length 1, metrics N and C: with the metric E take"):
        defense.resolve(THREAT, "E")


def test_the_step_crosses_the_ball_at_any_eta() -> None:
    threat = TrainingThreat(eps=77 / 255, eta=32)
    steps = {eta: round(255 * threat.step(77 / 255, eta)) for eta in (1, 2, 4, 8, 16, 32)}
    assert steps == {1: 77, 2: 48, 4: 24, 8: 12, 16: 6, 32: 3}
    assert TrainingThreat(eps=8 / 255, eta=8, alpha=1 / 255).step(8 / 255, 32) == 1 / 255


def test_pair_batches_visit_each_image_once_with_a_partner(tiny: RetrievalData) -> None:
    import numpy as np

    labels = np.array([3, 1, 3, 7, 1, 3, 9, 1])  # 7 and 9 are alone
    seen, partners = [], {}
    for seed in range(200):
        batches = pair_batches(labels, 2, np.random.default_rng(seed))
        flat = np.concatenate(batches)
        a, p = flat[::2], flat[1::2]
        assert sorted(a) == sorted(anchors(labels)) == [0, 1, 2, 4, 5, 7]
        assert (labels[a] == labels[p]).all()
        assert (a != p).all()
        seen.append(tuple(a))
        for x, y in zip(a, p, strict=True):
            partners.setdefault(int(x), []).append(int(y))
    assert len(set(seen)) > 100
    for anchor, found in partners.items():
        others = {i for i in range(8) if labels[i] == labels[anchor] and i != anchor}
        assert set(found) == others
        for other in others:
            assert found.count(other) / len(found) == pytest.approx(1 / len(others), abs=0.15)


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"level": -0.1}, "level"),
        ({"xi": 0.1}, "xi"),
        ({"destination": "constant", "u": 0.1}, "u"),
        ({"ics": 0.0, "ics_margin": 0.1}, "ics_margin"),
    ],
)
def test_keys_that_nothing_reads_are_refused(fields: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key} is not read with"):
        HardnessManipulation(**fields)


@pytest.mark.parametrize("text", ["hm:source=random,destination=random,ics=0", "head:clean=1"])
def test_the_adversary_is_refused_where_nothing_is_perturbed(text: str) -> None:
    """But for that of the data set, which a written run file names."""
    resolved = spec.parse(text, DEFENSES).resolve(THREAT, "N")
    assert spec.parse(spec.canonical(resolved), DEFENSES).resolve(THREAT, "N") == resolved
    for key, value in (("eta", "9"), ("eps", "1/255"), ("alpha", "1/255")):
        with pytest.raises(UserError, match=f"{key} is not read, as nothing is perturbed"):
            spec.parse(f"{text},{key}={value}", DEFENSES).resolve(THREAT, "N")


def test_hm_resolves_only_what_it_reads() -> None:
    level = HardnessManipulation(destination="constant", level=-0.1).resolve(THREAT, "N")
    assert level.u is None
    assert HardnessManipulation(destination="semihard", xi=0.1).resolve(THREAT, "N").u == GAMMA
    resolve = functools.partial(HardnessManipulation.resolve, threat=THREAT, metric="N")
    assert spec.shortest(level, resolve) == "hm:destination=constant,level=-0.1"
    plain = HardnessManipulation(source="random", destination="random", ics=0)
    assert plain.label == plain.resolve(THREAT, "N").label == "HM[R,R]"
    assert spec.shortest(plain.resolve(THREAT, "N"), resolve) == spec.canonical(plain)
    for ics in (None, 0.5):
        with pytest.raises(ValueError, match=r"perturbs nothing, and the .*: add ics=0$"):
            HardnessManipulation(source="random", destination="random", ics=ics)
