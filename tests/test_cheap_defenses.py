"""Free-AT, one-step training, and a frozen backbone equal slow versions of their steps."""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dmlbench as dml
from dmlbench.common.errors import UserError
from dmlbench.compute.device import Compute
from dmlbench.core import spec
from dmlbench.core.protocol import Recipe, TrainingThreat
from dmlbench.datasets.base import RetrievalData
from dmlbench.defenses.base import DEFENSES, State
from dmlbench.defenses.fast import FastTriplet
from dmlbench.defenses.free import DELTA, FreeAdversarialTraining
from dmlbench.defenses.gaussian import GaussianNoise
from dmlbench.defenses.head import RobustHead, head_alone
from dmlbench.defenses.samplers import sample
from dmlbench.models.base import parse_model
from dmlbench.models.small import C2F2
from dmlbench.sweep import plan
from dmlbench.sweep.feasible import check_feasible
from dmlbench.sweep.requests import parse_all
from dmlbench.training import trainer
from dmlbench.training.batches import Index, pair_batches
from dmlbench.training.trainer import Training, train
from tests.reporters import Silent
from tests.steps import GAMMA, THREAT, agrees, d, drawn, flat_gradient, make_batch, network


def test_a_step_of_fast(tiny: RetrievalData) -> None:
    """Noise, one step of 1.25 eps along the sign of the gradient, projected."""
    model = network()
    batch = make_batch(model, tiny)
    defense = FastTriplet().resolve(THREAT, "N")
    assert (defense.eta, defense.alpha, defense.training_cost) == (1, 0.25, 2)
    t = drawn(defense, "random", batch)
    anchors, images = batch.images[t.anchor], batch.images[t.stack()[:, 1:]]
    noise = torch.rand(images.shape, generator=batch.generator)
    low, high = (images - 0.2).clamp(min=0), (images + 0.2).clamp(max=1)
    x = (images + 0.2 * (2 * noise - 1)).clamp(low, high).requires_grad_()
    eval_model = copy.deepcopy(model).eval()
    pulled = d(eval_model(x[:, 0]), eval_model(x[:, 1])).sum()
    (gradient,) = torch.autograd.grad(pulled, x)
    x = (x.detach() - 0.25 * gradient.sign()).clamp(low, high)
    a, p, n = model(anchors), model(x[:, 0]), model(x[:, 1])
    expected = (d(a, p) - d(a, n) + GAMMA).clamp(min=0).mean()
    batch.generator.manual_seed(0)
    agrees(model, batch, defense, expected)
    assert defense.label == "FAST[R]"
    assert FastTriplet(eta=4).resolve(THREAT, "N").alpha == THREAT.alpha
    assert FastTriplet(alpha=0.1).resolve(THREAT, "N").alpha == 0.1


def test_steps_of_free(tiny: RetrievalData) -> None:
    """Weights and perturbation follow from one gradient; the perturbation stays for the next."""
    model = network()
    slow = copy.deepcopy(model)
    whole = make_batch(model, tiny)
    sizes = (len(whole.images), 10, len(whole.images))  # the second batch is smaller
    defense = FreeAdversarialTraining(alpha=0.1).resolve(THREAT, "N")
    assert (defense.eps, defense.training_cost, defense.label) == (0.2, 1, "FREE[R]")
    threat = TrainingThreat(eps=77 / 255, eta=8)
    assert FreeAdversarialTraining().resolve(threat, "N").alpha == 3 / 255
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    state: State = {}
    delta = torch.zeros_like(whole.images)
    for number, size in enumerate(sizes):
        generator = torch.Generator().manual_seed(number)
        batch = dataclasses.replace(
            whole, images=whole.images[:size], labels=whole.labels[:size], generator=generator
        )
        optimizer.zero_grad()
        step = defense.step(model, batch, state)
        assert step.loss is not None
        assert step.after is not None
        step.loss.backward()  # type: ignore[no-untyped-call]
        step.after(state)
        optimizer.step()

        own = delta[:size].clone().requires_grad_()
        e = slow((batch.images + own).clamp(0, 1))
        generator.manual_seed(number)
        t = sample("random", e.detach(), batch.labels, "N", GAMMA, generator)
        h = d(e[t.anchor], e[t.positive]) - d(e[t.anchor], e[t.negative])
        loss = (h + GAMMA).clamp(min=0).mean()
        *grads, dx = torch.autograd.grad(loss, [*slow.parameters(), own])
        assert step.loss.item() == pytest.approx(loss.item(), rel=1e-5)
        with torch.no_grad():
            for p, g in zip(slow.parameters(), grads, strict=True):
                p -= 0.5 * g
            delta[:size] = (own + 0.1 * dx.sign()).clamp(-0.2, 0.2)
        assert float((state[DELTA] != delta).float().mean()) < 0.01
        assert state[DELTA].abs().max() <= 0.2
    assert delta.abs().max() > 0.1  # it was handed on


def test_the_trainer_replays_a_batch(
    tiny: RetrievalData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many steps as without, on one in ``replays`` of the batches."""
    seen: list[Index] = []
    real = trainer._TrainingRun.step

    def spy(self: Any, images: torch.Tensor, index: Index, *args: Any) -> None:
        seen.append(index)
        real(self, images, index, *args)

    monkeypatch.setattr(trainer._TrainingRun, "step", spy)
    for replays in (1, 3):
        seen.clear()
        defense = FreeAdversarialTraining(replays=replays).resolve(THREAT, "N")
        training = Training(
            "tiny", tiny.digest, C2F2(dim=8), defense, Recipe(epochs=1, pairs=15), 0
        )
        train(training, tiny, tmp_path / str(replays), Compute("cpu"), Silent())
        count = len(pair_batches(tiny.train.labels, 15, np.random.default_rng(0)))
        assert len(seen) == -(-count // replays) * replays
        runs = [seen[i : i + replays] for i in range(0, len(seen), replays)]
        assert all(np.array_equal(one, run[0]) for run in runs for one in run)
        assert len({tuple(run[0]) for run in runs}) == len(runs)


def test_a_step_of_head(tiny: RetrievalData) -> None:
    """First the loss of plain training, then ACT's, whose gradient the head alone gets."""
    model = network()
    defense = RobustHead(clean=0.5).resolve(THREAT, "N")
    first = make_batch(model, tiny)
    t = drawn(defense, "random", first)
    e = model(first.images)
    h = d(e[t.anchor], e[t.positive]) - d(e[t.anchor], e[t.negative])
    first.generator.manual_seed(0)
    step = defense.step(model, first, {})
    assert step.loss is not None
    assert step.loss.item() == pytest.approx((h + GAMMA).clamp(min=0).mean().item(), rel=1e-5)
    assert flat_gradient(model, step).any()
    assert (step.passes, step.full_passes) == (0, len(t) * THREAT.eta)

    later = dataclasses.replace(make_batch(model, tiny), progress=0.5)
    act = spec.parse("act", DEFENSES).resolve(THREAT, "N")
    expected = act.step(model, make_batch(model, tiny), {})
    step = defense.step(model, later, {})
    assert step.loss is not None
    assert expected.loss is not None
    assert torch.equal(step.loss, expected.loss)
    step.loss.backward()  # type: ignore[no-untyped-call]
    parameters = list(model.parameters())
    whole = torch.autograd.grad(expected.loss, parameters)
    for p, g in zip(parameters[-2:], whole[-2:], strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, g)
    assert all(p.grad is None for p in parameters[:-2])
    assert all(p.requires_grad for p in parameters)
    assert (defense.label, defense.training_cost) == ("HEAD[R]", THREAT.eta + 1)


def test_a_training_that_never_perturbs_is_refused(tiny: RetrievalData, tmp_path: Path) -> None:
    """Its row would have the name of the defense, and the weights of plain training."""
    for text, epochs, words in (
        ("head", 1, "of 1 epochs all are clean (clean=0.5)"),
        ("head:clean=0.9", 4, "of 4 epochs all are clean (clean=0.9)"),
        ("ca-tride", 1, "one epoch perturbs nothing"),
    ):
        defense = spec.parse(text, DEFENSES).resolve(THREAT, "N")
        recipe = Recipe(epochs=epochs, pairs=8)
        training = Training("tiny", tiny.digest, C2F2(dim=8), defense, recipe, seed=0)
        with pytest.raises(UserError, match=re.escape(words)) as caught:
            train(training, tiny, tmp_path, Compute("cpu"), Silent())
        assert "\n" not in str(caught.value)
        defense.check_epochs(epochs + 1 if text != "head:clean=0.9" else 10)
    plain = RobustHead(clean=1).resolve(THREAT, "N")
    plain.check_epochs(1)
    assert plain.training_cost == 1
    model = network()
    assert plain.step(model, make_batch(model, tiny), {}).full_passes == 0


def test_the_frozen_layers_do_not_move() -> None:
    """Neither by a gradient, nor by the statistics of a batch norm."""
    layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = copy.deepcopy(layers.state_dict())
    optimizer = torch.optim.Adam(layers.parameters(), lr=0.1, weight_decay=0.1)
    with head_alone(layers):
        layers(torch.rand(8, 4)).sum().backward()
        optimizer.step()
    moved = [k for k, v in layers.state_dict().items() if not torch.equal(v, before[k])]
    assert moved == ["2.weight", "2.bias"]
    assert all(m.training for m in layers.modules())
    assert all(p.requires_grad for p in layers.parameters())


def test_head_refuses_a_network_without_a_head(tmp_path: Path) -> None:
    """The last layer of ``head=none`` is a batch norm: it would be all that learns."""
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), np.uint8)
    labels = np.arange(8) // 2
    data = dml.from_arrays(
        images,
        labels,
        train=(255 - images, labels + 4),
        recipe=Recipe(epochs=2, pairs=2),
    )
    chosen = {"model": "resnet18:weights=none,head=none", "results": tmp_path, "progress": False}
    said = r"defense head: .* layer4.1.bn2 \(BatchNorm2d\), only scales"
    with pytest.raises(UserError, match=said):
        dml.train("head", data, **chosen)  # type: ignore[arg-type]
    asked = parse_model(str(chosen["model"])), parse_all(["head"], DEFENSES), [0]
    trainings = plan.plan(data, "digest", *asked, data.protocol.recipe)
    dry: Any = SimpleNamespace(compute=Compute("cpu"), is_here=True, data=data.load(None))
    with pytest.raises(UserError, match=said):
        check_feasible(dry, trainings, here=True)
    whole = parse_model("resnet18:weights=none,dim=4").build(3, 32)
    RobustHead().check_network(whole.backbone)
    bare = parse_model("resnet18:weights=none,head=none").build(3, 32)
    RobustHead(clean=1.0).check_network(bare.backbone)  # the whole network learns


def test_a_step_of_gaussian(tiny: RetrievalData) -> None:
    """Noise on every image, triplets drawn on the noisy embeddings, and the loss on them."""
    model = network()
    batch = make_batch(model, tiny)
    defense = GaussianNoise(sigma=0.5).resolve(THREAT, "N")
    noise = torch.randn(batch.images.shape, generator=batch.generator)
    e = model(batch.images + 0.5 * noise)
    t = sample("random", e.detach(), batch.labels, "N", GAMMA, batch.generator)
    a, p, n = (e[rows] for rows in (t.anchor, t.positive, t.negative))
    expected = (d(a, p) - d(a, n) + GAMMA).clamp(min=0).mean()
    batch.generator.manual_seed(0)
    step = defense.step(model, batch, {})
    assert step.loss is not None
    assert step.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    flat = torch.cat([g.flatten() for g in torch.autograd.grad(expected, [*model.parameters()])])
    assert (flat_gradient(model, step) - flat).norm() <= 1e-4 * flat.norm()
    assert step.passes == 0
    assert (defense.label, defense.training_cost) == ("GAUSS[R]", 1)
