"""Square and NES against loops over single queries written from the papers, and what they see."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from dmlbench.analysis.csv_files import read_folder
from dmlbench.attacks import stack
from dmlbench.attacks.base import ATTACKS, Attack, Attacked, Gallery
from dmlbench.attacks.black_box import WithinBudget
from dmlbench.attacks.engine.square import side
from dmlbench.attacks.engine.targets import normal, uniform
from dmlbench.common.errors import UserError
from dmlbench.compute.embedding import EmbeddingModel, embed
from dmlbench.core import spec
from dmlbench.core.protocol import Threat
from dmlbench.datasets.base import RetrievalData
from dmlbench.report.plots import PLOTS
from dmlbench.report.render import boards

THREAT = Threat(eps=0.08, alpha=0.03, steps=10)
BUDGET = 24
BOTH = ["square", "square:see=distances", "nes:samples=4"]


def gallery_of(model: torch.nn.Module, images: torch.Tensor, tiny: RetrievalData) -> Gallery:
    with torch.no_grad():
        return Gallery(embed(model, images), torch.from_numpy(tiny.test.labels), "N")


def attack_of(text: str, threat: Threat = THREAT, budget: int = BUDGET) -> Attack:
    sign = "," if ":" in text else ":"
    return spec.parse(f"{text}{sign}budget={budget}", ATTACKS).resolve(threat)


class Shown:
    """A model that keeps what it is shown."""

    def __init__(self, model: torch.nn.Module, g: Gallery, index: int, attack: Any) -> None:
        self.model, self.g, self.index, self.attack = model, g, index, attack
        self.images: list[torch.Tensor] = []

    def distances(self, x: torch.Tensor) -> torch.Tensor:
        self.images.append(x)
        d = (self.g.embeddings.double() - embed(self.model, x[None]).double()).norm(dim=1)
        d[self.index] = torch.inf
        return d

    def ask(self, x: torch.Tensor) -> tuple[float, bool]:
        """The loss as the module has it, and whether the top-1 is wrong."""
        d = self.distances(x)
        own = self.g.labels == self.g.labels[self.index]
        mine, others = d[own].sort().values, d[~own].sort().values
        if getattr(self.attack, "see", "distances") == "ranks":
            ahead = [int((mine < other).sum()) for other in others[:10]]
            return ahead[0] + sum(ahead) / 10 / (len(d) + 1), ahead[0] == 0
        return float(others[0] - mine[0]), bool(others[0] < mine[0])


def slow_square(ask: Shown, clean: torch.Tensor, seed: int) -> tuple[torch.Tensor, int]:
    """The Square Attack on one image: what it ends with, and the passes until it broke; -1."""
    eps, p, query = ask.attack.eps, ask.attack.p, torch.tensor([ask.index])
    channels, height, width = clean.shape

    def clip(x: torch.Tensor) -> torch.Tensor:
        return x.clamp(clean - eps, clean + eps).clamp(0, 1)

    stripes = uniform(query, seed, "square stripes", (channels, 1, width))[0]
    draws = uniform(query, seed, "square", (BUDGET, 2 + channels))[0]
    best = clip(clean + eps * torch.where(stripes < 0.5, -1.0, 1.0))
    loss, broken = ask.ask(best)
    for number in range(1, BUDGET):
        if broken:
            return best, number
        i, share = int((number - 1) / BUDGET * 10_000), p
        for after in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000):
            share = share / 2 if i > after else share
        h = max(1, round(math.sqrt(share * height * width)))
        top, left = (
            int(draws[number, 0] * (height - h + 1)),
            int(draws[number, 1] * (width - h + 1)),
        )
        new = best.clone()
        for channel in range(channels):
            sign = -1 if draws[number, 2 + channel] < 0.5 else 1
            new[channel, top : top + h, left : left + h] += 2 * eps * sign
        new = clip(new)
        its, broken = ask.ask(new)
        if its < loss:
            best, loss = new, its
    return best, BUDGET if broken else -1


def slow_nes(ask: Shown, clean: torch.Tensor, seed: int) -> tuple[torch.Tensor, int]:
    """NES on one image, a pass after another."""
    a = ask.attack
    query = torch.tensor([ask.index])

    def clip(x: torch.Tensor) -> torch.Tensor:
        return x.clamp(clean - a.eps, clean + a.eps).clamp(0, 1)

    x, m, number, best, least = clean, torch.zeros_like(clean), 0, clean, math.inf
    while True:
        g, pair = torch.zeros_like(clean), []
        for place in range(a.samples + 1):
            if number == BUDGET:
                return best, -1
            shown = x
            if place:
                u = normal(query, seed, f"nes {number if place % 2 else number - 1}", x.shape)[0]
                shown = clip(x + (a.sigma if place % 2 else -a.sigma) * u)
            loss, broken = ask.ask(shown)
            number += 1
            if broken:
                return shown, number
            if loss < least:
                best, least = shown, loss
            pair.append((loss, shown))
            if place and place % 2 == 0:
                (first, plus), (second, minus) = pair[-2:]
                g += (first - second) * (plus - minus)
        m = 0.9 * m + g
        x = clip(x - a.alpha * m.sign())


@pytest.mark.parametrize("text", BOTH)
def test_it_is_the_papers_loop_over_single_queries(
    text: str, model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    attack: Any = attack_of(text)
    found = attack.run(model, images, torch.arange(40), gallery, seed=3)
    slow = slow_nes if text.startswith("nes") else slow_square
    name, counts = attack.columns[0].name, []
    for row in range(0, 40, 2):
        ask = Shown(model, gallery, row, attack)
        until, image = 0, images[row]
        if gallery.recall_at_1(gallery.embeddings[row : row + 1], torch.tensor([row])) > 0:
            image, until = slow(ask, images[row], 3)
        assert len(ask.images) == (BUDGET if until < 0 else until)
        torch.testing.assert_close(found.perturbed.images[row], image, rtol=0, atol=1e-6)
        assert found.outcomes[name][row] == (100 if until < 0 else 0)
        assert found.outcomes[f"{name}:Q"][row] == (BUDGET if until < 0 else until)
        counts.append(len(ask.images))
    assert sum(counts) < found.perturbed.forward_passes <= 40 * BUDGET
    assert found.perturbed.passes == 0
    assert {0, BUDGET} < set(counts)  # some in between too


@pytest.mark.parametrize("text", [*BOTH, "square:of=item", "top1:steps=2,eps=0.02"])
def test_neither_batch_nor_order_change_a_bit(
    text: str,
    model: EmbeddingModel,
    images: torch.Tensor,
    gallery: Gallery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stack, "BUDGET", 20)
    if text.startswith("top1"):
        attack = spec.parse(text, ATTACKS).resolve(THREAT)
    else:
        attack = attack_of(text)

    def run(rows: torch.Tensor) -> Attacked:
        return attack.run(model, images[rows], rows, gallery, seed=0)

    index, order = torch.arange(40), torch.randperm(40)
    whole, parts = run(index), [run(rows) for rows in order.split(9)]
    assert torch.equal(
        torch.cat([p.perturbed.images for p in parts]), whole.perturbed.images[order]
    )
    for name, value in whole.outcomes.items():
        assert torch.equal(torch.cat([p.outcomes[name] for p in parts]), value[order])
    again = attack.run(model, images, index, gallery, seed=1).perturbed.images
    assert not torch.equal(again, whole.perturbed.images)  # the seed decides


@pytest.mark.parametrize("text", BOTH)
def test_what_is_shown_stays_in_the_ball_and_the_budget(
    text: str, model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    """Counted at the network, which sees no image outside the ball."""
    seen = []

    class Watched(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not torch.is_grad_enabled()
            seen.append(x.clone())
            return model(x)  # type: ignore[no-any-return]

    for row in range(0, 40, 9):
        for budget in (1, 2, 7):
            seen.clear()
            attack = attack_of(text, budget=budget)
            rows = torch.tensor([row])
            attack.run(Watched(), images[rows], rows, gallery, seed=0)
            *shown, last = (x[:1] for x in seen)  # the batch is padded; the last is the outcome's
            assert len(shown) <= budget
            for x in (*shown, last):
                assert ((x - images[rows]).abs() <= 0.08 + 1e-6).all()
                assert ((x >= 0) & (x <= 1)).all()


def test_sides_follow_the_published_schedule() -> None:
    places = {0: 25, 10: 25, 11: 18, 50: 18, 51: 13, 201: 9, 501: 6, 1001: 4, 2001: 3, 4001: 2}
    places |= {6001: 2, 8001: 1, 9999: 1}
    assert {at: side(0.8, at, 10_000, 28 * 28) for at in places} == places
    assert side(0.8, 2, 200, 784) == side(0.8, 100, 10_000, 784)  # after the same share
    assert side(0.001, 5, 100, 64) == 1


def test_ranks_are_all_that_is_seen(
    model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    """Another distance with the same order changes nothing: C = N^2 / 2 for unit length."""
    index = torch.arange(40)
    other = Gallery(gallery.embeddings, gallery.labels, "C")
    runs = [attack_of("square").run(model, images, index, g, seed=0) for g in (gallery, other)]
    assert torch.equal(runs[0].perturbed.images, runs[1].perturbed.images)
    assert torch.equal(runs[0].outcomes["Square:Q"], runs[1].outcomes["Square:Q"])
    seen = attack_of("square:see=distances")
    margins = [seen.goal(g, index, 0) for g in (gallery, other)]
    e = gallery.embeddings + 0.1 * torch.randn_like(gallery.embeddings)
    e = torch.nn.functional.normalize(e, dim=1)
    assert not torch.equal(*(goal.value_and_grad(e, 0)[0] for goal in margins))
    ranks = [attack_of("square").goal(g, index, 0).value_and_grad(e, 0) for g in (gallery, other)]
    assert torch.equal(ranks[0][0], ranks[1][0])
    assert not ranks[0][1].any()


class Rounded(torch.nn.Module):
    """A network that masks its gradient: it rounds its input, to a quarter of the range."""

    metric = "N"

    def __init__(self, model: EmbeddingModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        e: torch.Tensor = self.model((8 * x).round() / 8)
        return e


def test_a_network_that_masks_its_gradient_is_broken_all_the_same(
    model: EmbeddingModel, images: torch.Tensor, tiny: RetrievalData
) -> None:
    masked, index = Rounded(model), torch.arange(0, 40, 2)
    gallery = gallery_of(masked, images, tiny)

    def value(text: str) -> dict[str, float]:
        attack = spec.parse(text, ATTACKS).resolve(THREAT)
        found = attack.run(masked, images[index], index, gallery, seed=0)
        return {name: x.nanmean().item() for name, x in found.outcomes.items()}

    clean = gallery.recall_at_1(gallery.embeddings[index], index).nanmean().item()
    assert value("margin:optimizer=apgd")["Margin"] == clean
    ranks = value("square:budget=100")["Square"]
    assert ranks < clean - 30
    assert value("square:budget=100,see=distances")["Square"] < clean - 30
    whole = value("top1:steps=4")
    assert whole["Top1:Square"] > 20
    assert whole["Top1"] <= ranks
    left = value("top1:steps=2,restarts=2")
    assert left["Top1:Square"] > 10  # from both starts the gradient is zero


def test_the_stack_names_what_only_square_broke(
    model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    """With an honest gradient Square finds next to nothing, and no query of the white box."""
    attack = spec.parse("top1:steps=20,suite=auto,eps=0.02", ATTACKS).resolve(THREAT)
    found = attack.run(model, images, torch.arange(40), gallery, seed=0)
    by_square = found.outcomes["Top1:Square"] == 100
    assert by_square.float().mean() <= 0.05
    assert (found.outcomes["Top1"][by_square] == 0).all()
    assert 0 < found.perturbed.forward_passes <= 40 * attack.most_forward_passes
    assert (found.clean["Top1:Square"] == 0).all()
    assert found.last.keys() == {"Top1"}  # Square has no last iterate to hold against its best


def test_a_goal_says_what_a_query_withstands_untried(gallery: Gallery) -> None:
    goal = attack_of("square").goal(gallery, torch.arange(40), 0)
    assert isinstance(goal, WithinBudget)
    outcome = goal.outcome(gallery.embeddings)
    assert torch.equal(outcome["Square:Q"], outcome["Square"] / 100 * BUDGET)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("square:steps=5", "steps is not for a black box"),
        ("nes:restarts=2", "restarts is not for a black box"),
        ("square:optimizer=apgd", "takes no gradient"),
        ("square:alpha=0.1", "alpha is not for square"),
        ("nes:samples=5", "samples must be even"),
        ("square:see=all", "ranks, distances"),
        ("square:budget=0", "budget must be"),
    ],
)
def test_keys_that_make_no_sense_are_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        spec.parse(text, ATTACKS)


def test_the_command_line(dmlbench: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    run = ("run", "--defense", "none", "--dataset", "tiny")
    named = ("--attack", "square:see=ranks,budget=20", "--attack", "nes:budget=12")
    priced = dmlbench(*run, *named, "--dry-run")
    assert "strict 0 and 32 forward only" in priced.stdout, priced.stderr
    done = dmlbench(*run, *named)
    assert done.returncode == 0, done.stderr
    cells = [json.loads(p.read_text()) for p in (tmp_path / "results/cells").glob("*.json")]
    cell = next(c for c in cells if c["facts"].get("attack") == "square")
    found = cell["findings"]
    assert found["passes"] == 0
    assert 0 < found["forward_passes"] <= 20
    assert found["curves"].keys() == {"Square:Q"}
    assert found["curves"]["Square:Q"][0][0] == 0
    assert set(cell["metrics"]) == {"Square", "Square:Q", "Square:q50"}
    (board,) = boards(read_folder(tmp_path / "results"), literature=False)
    figure = PLOTS["curves"](board.tables[0])
    assert figure is not None
    assert any("forward passes" in axis.get_xlabel() for axis in figure.axes)
