"""The attacks on the top-1 against explicit loops over classes, and their stack."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dmlbench.attacks import stack
from dmlbench.attacks.base import ATTACKS, Attack, Gallery
from dmlbench.attacks.engine import classes
from dmlbench.attacks.engine.apgd import APGD
from dmlbench.attacks.engine.black_box import Counted
from dmlbench.attacks.engine.classes import Classes
from dmlbench.attacks.engine.optimizer import Perturbed
from dmlbench.attacks.engine.square import Square
from dmlbench.attacks.engine.targets import random_start
from dmlbench.attacks.stack import STAGES
from dmlbench.attacks.top1 import LOSSES, TopOneGoal
from dmlbench.compute.embedding import EmbeddingModel, embed
from dmlbench.core.protocol import Threat

THREAT = Threat(eps=0.1, alpha=0.03, steps=10, suite="auto")
UNEQUAL = [0] * 14 + [7] * 12 + [3] * 11 + [9] * 5 + [4] * 2 + [2]  # the last is alone in its class
LOWEST = torch.finfo(torch.float64).min


def make_gallery(labels: list[int], metric: str, dtype: torch.dtype = torch.float64) -> Gallery:
    x = torch.randn(len(labels), 6, dtype=dtype)
    if metric != "E":
        x = torch.nn.functional.normalize(x, dim=1)
    y = torch.tensor(labels)[torch.randperm(len(labels))]
    return Gallery(x, y, metric)  # type: ignore[arg-type]


def distance(a: torch.Tensor, b: torch.Tensor, metric: str) -> torch.Tensor:
    return 1 - a @ b if metric == "C" else (a - b).norm()


def by_class(
    e: torch.Tensor, own: int, g: Gallery, labels: list[int]
) -> dict[int, list[torch.Tensor]]:
    """Ascending distances to the items of each class; the query's own entry is left out."""
    found: dict[int, list[torch.Tensor]] = {}
    for item, label in enumerate(labels):
        if item != own:
            found.setdefault(label, []).append(distance(e, g.embeddings[item], g.metric))
    return {label: sorted(d, key=torch.Tensor.item) for label, d in found.items()}


def slow_loss(
    name: str, e: torch.Tensor, own: int, mine: int, g: Gallery, labels: list[int], clean: Any
) -> tuple[torch.Tensor, bool]:
    """The loss as the module's docstring has it, and whether the query is broken."""
    d = by_class(e, own, g, labels)
    if mine not in d or len(d) == 1:
        return 0 * e.sum(), False
    others = {label: v for label, v in d.items() if label != mine}
    margin = min((v[0] for v in others.values()), key=torch.Tensor.item) - d[mine][0]
    if margin < 0:
        return 0 * e.sum() + LOWEST, True
    if name == "dlr" and len(d) > 2:
        least = sorted((v[0] for v in d.values()), key=torch.Tensor.item)
        return margin / (least[2] - least[0]), False
    if name == "knn":
        means = {label: torch.stack(v[:10]).mean() for label, v in d.items()}
        return min((means[c] for c in others), key=torch.Tensor.item) - means[mine], False
    if name == "shift":
        return -distance(e, clean, g.metric), False
    return margin, False


@pytest.mark.parametrize("of", ["class", "item"])
@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize(
    ("labels", "metric"),
    [
        *((UNEQUAL, metric) for metric in ("N", "E", "C")),
        *((labels, "N") for labels in ([0, 1] * 20, list(range(30)), [5] * 20)),
    ],
    ids=lambda x: str(len(set(x))) if isinstance(x, list) else x,
)
def test_losses_and_gradients_equal_their_definition(
    name: str, metric: str, of: str, labels: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classes, "CHUNK", 15)  # blocks of one class, of several, and of many
    g, index = make_gallery(labels, metric), torch.arange(0, len(labels), 2)
    attack: Any = ATTACKS.get(name)(of=of).resolve(THREAT)
    goal = attack.goal(g, index, seed=0)
    seen = {True: 0, False: 0}
    for noise in (0.05, 0.3):
        e = g.embeddings[index] + noise * torch.randn(len(index), 6, dtype=torch.float64)
        loss, gradient = goal.value_and_grad(e, 1)
        for row, own in enumerate(index.tolist()):
            x = e[row].clone().requires_grad_()
            used, mine = g.labels.tolist(), int(g.labels[own])
            if of == "item":
                used, mine = list(range(len(labels))), int(g.nearest(torch.tensor([own]), 1))
            clean = g.embeddings[own]
            expected, broken = slow_loss(name, x, own, mine, g, used, clean)
            (slope,) = torch.autograd.grad(expected, x)
            torch.testing.assert_close(loss[row], expected.detach(), rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(gradient[row], slope, rtol=1e-7, atol=1e-10)
            seen[broken] += 1
    if len(set(labels)) > 1 or of == "item":
        assert seen[False] > 0
    if len(set(labels)) > 1 and len(set(labels)) < len(labels):
        assert seen[True] > 0


@pytest.mark.parametrize("name", list(LOSSES))
def test_gradients_agree_with_finite_differences(name: str) -> None:
    g, index = make_gallery(UNEQUAL, "N"), torch.arange(44)
    goal = ATTACKS.get(name)().resolve(THREAT).goal(g, index, seed=0)
    e = g.embeddings[index] + 0.1 * torch.randn(44, 6, dtype=torch.float64)
    loss, gradient = goal.value_and_grad(e, 1)
    for _ in range(3):
        way, h = torch.randn_like(e), 1e-7
        ahead, behind = (goal.value_and_grad(e + s * h * way, 1)[0] for s in (1, -1))
        slope = torch.where(loss == LOWEST, 0, (ahead - behind) / (2 * h))
        torch.testing.assert_close((gradient * way).sum(1), slope, rtol=1e-5, atol=1e-6)
    assert (gradient != 0).any(1).sum() > 5


@pytest.mark.parametrize("chunk", [1, 7, 15, 1000])
def test_blocks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    g, index = make_gallery(UNEQUAL, "N"), torch.arange(45)
    e = g.embeddings + 0.2 * torch.randn_like(g.embeddings)
    whole = Classes(g, g.labels)
    expected = whole.nearest(e, index, whole.place_of_item[:, None], 10)
    monkeypatch.setattr(classes, "CHUNK", chunk)
    parts = Classes(g, g.labels)
    found = parts.nearest(e, index, parts.place_of_item[:, None], 10)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_memory_does_not_grow_with_the_gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    """No product is wider than a block."""
    widths, product = [], torch.addmm

    def watched(bias: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        widths.append(len(bias))
        return product(bias, *args, **kwargs)

    monkeypatch.setattr(classes, "CHUNK", 64)
    g = make_gallery([i // 3 for i in range(3000)], "N")
    found = Classes(g, g.labels)
    monkeypatch.setattr(torch, "addmm", watched)
    found.nearest(g.embeddings[:4], torch.arange(4), found.place_of_item[:4, None])
    assert max(widths) <= 64
    assert sum(widths) == 3000


def resolved(name: str, **fields: Any) -> Attack:
    return ATTACKS.get(name)(**{"steps": 10} | fields).resolve(THREAT)


@pytest.mark.parametrize("of", ["class", "item"])
@pytest.mark.parametrize("optimizer", ["pgd", "apgd"])
@pytest.mark.parametrize("name", ["margin", "knn", "top1"])
def test_neither_batch_order_nor_active_set_change_a_bit(
    name: str,
    optimizer: str,
    of: str,
    model: EmbeddingModel,
    images: torch.Tensor,
    gallery: Gallery,
) -> None:
    attack, index = resolved(name, optimizer=optimizer, of=of), torch.arange(40)

    def run(rows: torch.Tensor, active_set: bool = True) -> torch.Tensor:
        found = attack.run(model, images[rows], rows, gallery, seed=0, active_set=active_set)
        return found.perturbed.images

    whole, order = run(index), torch.randperm(40)
    assert torch.equal(whole, run(index, active_set=False))
    assert torch.equal(torch.cat([run(rows) for rows in order.split(9)]), whole[order])


def test_the_first_iterate_that_breaks_a_query_is_kept_and_confirmed(
    model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    index = torch.arange(40)
    attack = resolved("margin", optimizer="pgd", alpha=0.02)
    found = attack.run(model, images, index, gallery, seed=0)
    goal = attack.goal(gallery, index, seed=0)
    x, first = images.clone(), torch.full((40,), -1)
    trace = []
    for step in range(10):
        x = x.detach().requires_grad_()
        e = embed(model, x)
        loss, de = goal.value_and_grad(e.detach(), step)
        broken = loss == torch.finfo(torch.float32).min
        first[(first < 0) & broken] = step
        trace.append(x.detach())
        (dx,) = torch.autograd.grad(e, x, de)
        x = (x - 0.02 * dx.sign()).clamp(images - 0.1, images + 0.1).clamp(0, 1)
    assert (first > 0).sum() > 5
    for row in (first >= 0).nonzero()[:, 0].tolist():
        assert torch.equal(found.perturbed.images[row], trace[int(first[row])][row])
        assert found.outcomes["Margin"][row] == 0
    wrong = (gallery.recall_at_1(gallery.embeddings, index) == 0).nonzero()[:, 0]
    assert torch.equal(found.perturbed.images[wrong], images[wrong])


@pytest.mark.parametrize(
    ("of", "eps"), [("class", 0.05), pytest.param("item", 0.02, marks=pytest.mark.slow)]
)
def test_the_stack_is_its_stages_in_turn(
    of: str,
    eps: float,
    model: EmbeddingModel,
    images: torch.Tensor,
    gallery: Gallery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A loop over single queries: what one stage leaves goes to the next, from its own start."""
    monkeypatch.setattr(stack, "BUDGET", 20)
    whole, index = resolved("top1", of=of, eps=eps), torch.arange(0, 40, 2)
    found = whole.run(model, images[index], index, gallery, seed=3)
    broken_by, passes = dict.fromkeys((*STAGES, "square", "none"), 0), 0
    squares: Any = resolved("square", of=of, eps=eps, budget=20, steps=None)
    for row, rows in enumerate(index.split(1)):
        for number, name in enumerate(STAGES):
            attack: Any = resolved(name, of=of, eps=eps)
            goal = attack.goal(gallery, rows, seed=3)
            start = random_start(images[rows], eps, rows, 3, number) if number else None
            search = attack.search()
            one = search.run(lambda x: embed(model, x), images[rows], goal, start)
            passes += one.passes
            (outcome,) = goal.outcome(embed(model, one.images)).values()
            if outcome == 0:
                break
        else:
            name = "none"
            last = squares.run(model, images[rows], rows, gallery, seed=3)
            if last.outcomes["Square"] == 0:
                name, outcome, one = "square", outcome * 0, last.perturbed
        broken_by[name] += 1
        assert found.outcomes["Top1"][row] == outcome[0]
        assert found.outcomes["Top1:Square"][row] == 100 * (name == "square")
        assert torch.equal(found.perturbed.images[[row]], one.images)
    assert broken_by["none"] < 20
    assert passes <= found.perturbed.passes <= found.perturbed.full_passes == 20 * 10 * 3


class Shaken(torch.nn.Module):
    """A randomised network."""

    def __init__(self, model: EmbeddingModel) -> None:
        super().__init__()
        self.inner = model.backbone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        e: torch.Tensor = self.inner(x + 0.1 * torch.randn_like(x))
        return e


@pytest.mark.slow
def test_of_a_randomised_network_the_stack_keeps_the_best_of_its_stages(
    model: EmbeddingModel, images: torch.Tensor, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later stages that only make it worse for the attacker leave no trace in its images."""
    shaken, index = EmbeddingModel(Shaken(model), "N"), torch.arange(40)
    good: Any = resolved("margin", eps=0.1)

    def run(sabotaged: bool) -> torch.Tensor:
        whole, run_stage = resolved("top1", eps=0.1), APGD.run

        def run(self: APGD, embed: Any, clean: torch.Tensor, goal: Any, *more: Any) -> Perturbed:
            found = run_stage(self, embed, clean, goal, *more)
            return found if goal.name == "margin" else replace(found, images=clean.clone())

        def blind(self: Square, embed: Any, clean: torch.Tensor, goal: Any) -> Counted:
            found = run_square(self, embed, clean, goal)
            return replace(found, images=clean.clone(), until=torch.ones_like(found.until))

        run_square = Square.run
        with monkeypatch.context() as patched:
            patched.setattr(stack, "BUDGET", 5)
            if sabotaged:
                patched.setattr(APGD, "run", run)
                patched.setattr(Square, "run", blind)
            found = whole.run(shaken, images, index, gallery, seed=3, draws=8)
        worse = (
            found.outcomes["Top1"]
            > good.run(shaken, images, index, gallery, seed=3, draws=8).outcomes["Margin"] + 40
        )
        assert not worse.any()
        took = found.outcomes["Top1:Square"]
        return took if sabotaged else found.outcomes["Top1"]

    assert run(sabotaged=True).mean() < 2
    assert 0 < run(sabotaged=False).mean() < 100


def test_every_restart_of_the_stack_tries_other_starts_and_squares(
    model: EmbeddingModel, images: torch.Tensor, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[torch.Tensor] = []
    starts: list[tuple[Any, ...]] = []

    def spied(*given: Any) -> torch.Tensor:
        starts.append(given)
        drawn.append(random_start(*given) - given[0])
        return drawn[-1] + given[0]

    monkeypatch.setattr(stack, "random_start", spied)
    monkeypatch.setattr(stack, "BUDGET", 2)
    index, squares = torch.arange(8), []
    begin = Square.begin

    def begun(self: Square, known: Any, objective: Any) -> Any:
        squares.append(begin(self, known, objective).draws)
        return begin(self, known, objective)

    monkeypatch.setattr(Square, "begin", begun)
    noise = {}
    for restarts in (1, 3):
        drawn.clear()
        squares.clear()
        whole = resolved("top1", eps=0.001, restarts=restarts, steps=1)
        whole.run(model, images[index], index, gallery, seed=3)
        noise[restarts] = [*drawn], [*squares]
    assert all(torch.equal(a, b) for a, b in zip(noise[1][1], noise[3][1], strict=False))
    for one, many in zip(noise[1], noise[3], strict=True):
        assert len({float(x.double().sum()) for x in many}) == len(many) == 3 * len(one)
    rows, eps, which, seed, _ = starts[-6]  # the first of the three restarts
    assert seed == 3
    for number in range(3):  # where the restarts of the margin begin
        begin = random_start(rows, eps, which, seed, number)
        assert not any(torch.equal(begin - rows, one) for one in noise[3][0][:2])


def test_only_several_restarts_have_a_version_of_their_own() -> None:
    plain = resolved("top1")
    assert plain.version == resolved("top1", restarts=1).version == plain.card.version
    assert resolved("top1", restarts=2).version > plain.version


def test_an_item_needs_no_labels_and_a_tie_is_lost(
    model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    index, unlabelled = torch.arange(40), torch.zeros_like(gallery.labels)
    attack = resolved("top1", of="item")
    a = attack.run(model, images, index, gallery, seed=0)
    b = attack.run(
        model, images, index, Gallery(gallery.embeddings, unlabelled, gallery.metric), seed=0
    )
    assert torch.equal(a.outcomes["Top1"], b.outcomes["Top1"])
    assert (a.clean["Top1"] == 100).all()
    twice = Gallery(gallery.embeddings[[0, 1, 1, 2]], torch.arange(4), gallery.metric)
    goal = attack.goal(twice, torch.tensor([0]), seed=0)
    assert isinstance(goal, TopOneGoal)
    assert goal.outcome(twice.embeddings[:1])["Top1"].item() in (0, 100)
    tied = attack.goal(twice, torch.tensor([3]), seed=0)
    assert tied.outcome(twice.embeddings[1:2])["Top1"].item() == 0
