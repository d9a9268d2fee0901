"""Properties that every registered attack and defense must have, also those of plugins."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dmlbench.attacks.base import ATTACKS, Attack, Gallery
from dmlbench.compute.distributed import World
from dmlbench.compute.embedding import EmbeddingModel, embed
from dmlbench.core import spec
from dmlbench.core.protocol import Threat, TrainingThreat
from dmlbench.datasets.base import RetrievalData
from dmlbench.defenses.base import DEFENSES, Batch, Defense
from dmlbench.models.small import C2F2

THREAT = Threat(eps=0.2, alpha=0.05, steps=8, sp_scale=0)
ATTACK_CLASSES, DEFENSE_CLASSES = list(ATTACKS), list(DEFENSES)


def name(cls: type) -> str:
    return str(cls.card.name)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    torch.manual_seed(0)
    return C2F2(dim=8).build(1, 8).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def gallery(model: EmbeddingModel, tiny: RetrievalData) -> Gallery:
    images = tiny.evaluation_pixels(torch.from_numpy(tiny.test.images))
    return Gallery(embed(model, images), torch.from_numpy(tiny.test.labels), model.metric)


@pytest.mark.parametrize("cls", [*ATTACK_CLASSES, *DEFENSE_CLASSES], ids=name)
def test_cards_are_complete(cls: type[Attack] | type[Defense]) -> None:
    card = cls.card
    assert card.name == card.name.lower()
    assert card.summary
    assert not card.summary.endswith(".")
    assert "\n" not in card.summary
    assert card.version >= 1
    assert card.paper is not None
    assert card.paper.key in card.paper.bibtex
    for p in spec.parameters(cls):
        assert p.help
        p.check(p.default)
    for column in getattr(cls, "columns", ()):
        assert column.help.endswith(".")


@pytest.mark.parametrize("cls", ATTACK_CLASSES, ids=name)
def test_gradients_agree_with_finite_differences(cls: type[Attack], gallery: Gallery) -> None:
    double = Gallery(gallery.embeddings.double(), gallery.labels, gallery.metric)
    index = torch.arange(0, 40, 5)
    goal = cls().resolve(THREAT).goal(double, index, seed=0)
    e = torch.nn.functional.normalize(
        double.embeddings[index] + 0.1 * torch.randn(8, 8, dtype=torch.float64), dim=1
    )
    loss, gradient = goal.value_and_grad(e, 1)
    assert loss.shape == (8,)
    assert gradient.shape == e.shape
    direction = torch.randn_like(e)
    h = 1e-7
    slope = (
        goal.value_and_grad(e + h * direction, 1)[0] - goal.value_and_grad(e - h * direction, 1)[0]
    ) / (2 * h)
    torch.testing.assert_close((gradient * direction).sum(1), slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", ATTACK_CLASSES, ids=name)
def test_a_subset_of_a_goal_is_the_goal_of_the_subset(cls: type[Attack], gallery: Gallery) -> None:
    index, rows = torch.arange(10, 20), torch.tensor([7, 2])
    e = gallery.embeddings[index]
    attack = cls().resolve(THREAT)
    whole = attack.goal(gallery, index, seed=0)
    part = attack.goal(gallery, index[rows], seed=0)
    for a, b in ((whole.take(rows), part), (part, whole.take(rows))):
        for x, y in zip(a.value_and_grad(e[rows], 0), b.value_and_grad(e[rows], 0), strict=True):
            torch.testing.assert_close(x, y)


@pytest.mark.parametrize("cls", ATTACK_CLASSES, ids=name)
def test_an_attack_hurts_and_reports_its_columns(
    cls: type[Attack], model: EmbeddingModel, gallery: Gallery, tiny: RetrievalData
) -> None:
    images, index = tiny.evaluation_pixels(torch.from_numpy(tiny.test.images)), torch.arange(40)

    def run(attack: Attack) -> dict[str, float]:
        found = attack.run(model, images, index, gallery, seed=0)
        assert set(found.outcomes) == {c.name for c in cls.columns}
        if attack.eps == 0:
            for column in found.outcomes:
                torch.testing.assert_close(found.outcomes[column], found.clean[column])
        return {k: v.mean().item() for k, v in found.outcomes.items()}

    attacked = run(cls().resolve(THREAT))
    benign = run(dataclasses.replace(cls(), eps=0.0).resolve(THREAT))
    column = cls.columns[0]
    worse = attacked[column.name] - benign[column.name]
    assert worse < 0 if column.better == "higher" else worse > 0


@pytest.mark.parametrize("cls", DEFENSE_CLASSES, ids=name)
def test_a_defense_gives_a_loss_and_leaves_the_model_as_it_was(
    cls: type[Defense], tiny: RetrievalData
) -> None:
    network = C2F2(dim=8).build(1, 8)
    images = tiny.evaluation_pixels(torch.from_numpy(tiny.train.images))
    labels = torch.from_numpy(tiny.train.labels)
    network.eval()
    with torch.no_grad():
        embeddings = embed(network, images)
    network.train()
    before = [p.clone() for p in network.parameters()]
    batch = Batch(images, labels, lambda: embeddings, torch.Generator().manual_seed(0), World())
    defense = cls().resolve(TrainingThreat(eps=0.1, eta=2), "N")
    step = defense.step(network, batch, {})
    assert step.loss is not None
    assert step.loss.ndim == 0
    assert step.loss.requires_grad
    assert -2 <= step.hardness <= 2
    assert network.training
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert all(p.grad is None for p in network.parameters())
    assert defense.training_cost >= 1
    assert spec.canonical(spec.parse(spec.canonical(defense), DEFENSES)) == spec.canonical(defense)
