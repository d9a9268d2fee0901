"""QAIR and OA on lists against a user who reads them; PSO and random search against loops."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from dmlbench.attacks.base import ATTACKS, Gallery
from dmlbench.attacks.engine.nes import NES
from dmlbench.attacks.engine.objective import RowWise
from dmlbench.attacks.engine.pso import PSO
from dmlbench.attacks.engine.random_search import RandomSearch
from dmlbench.attacks.engine.targets import coarse, normal, uniform
from dmlbench.attacks.qair import weights
from dmlbench.common.errors import CellError, UserError
from dmlbench.core import spec
from dmlbench.core.protocol import Threat
from dmlbench.testing.attack_subject import Subject

THREAT = Threat(eps=0.2, alpha=0.05, steps=8)
EVERY = torch.arange(40)


def attack_of(text: str) -> Any:
    return spec.parse(text, ATTACKS).resolve(THREAT)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(ATTACKS.get("qair")())


def returned(g: Gallery, e: torch.Tensor, own: int) -> list[int]:
    """The list of a query, without itself."""
    d = (g.embeddings.double() - e.double()).norm(dim=1)
    return [n for n in d.argsort().tolist() if n != own]


def relevance(n: int) -> list[float]:
    raw = [2.0 ** (n + 1 - r) - 1 if n <= 16 else n + 1 - r for r in range(1, n + 1)]
    return [one / sum(raw) for one in raw]


@pytest.mark.parametrize("n", [1, 5, 16, 17])
def test_the_score_is_the_weighted_overlap(n: int, subject: Subject) -> None:
    g, w = subject.gallery, relevance(n)
    assert weights(n).tolist() == pytest.approx([*w, 0])
    goal = attack_of(f"qair:n={n},budget=20").goal(g, EVERY, 0)
    e = torch.nn.functional.normalize(g.embeddings + 0.2 * torch.randn(40, 8), dim=1)
    found, loss = goal.outcome(e), goal.value_and_grad(e, 0)[0]
    for row in range(40):
        clean, now = returned(g, g.embeddings[row], row)[:n], returned(g, e[row], row)[:n]
        both = sum(w[clean.index(c)] * w[now.index(c)] for c in clean if c in now)
        score = 100 * both / sum(one * one for one in w)
        assert found["QAIR"][row].item() == pytest.approx(score, abs=1e-4)
        assert found["QAIR:Q"][row] == (20 if score else 0)
        assert loss[row].item() == pytest.approx(score if score else torch.finfo(loss.dtype).min)
    untouched = goal.outcome(g.embeddings)
    assert torch.allclose(untouched["QAIR"], torch.full((40,), 100.0, dtype=torch.float64))


@pytest.mark.parametrize("by", ["nes", "square"])
def test_the_passes_are_those_until_nothing_is_left(by: str, subject: Subject) -> None:
    attack = attack_of(f"qair:n=2,budget=60,by={by}")
    found = attack.run(subject.model, subject.images, EVERY, subject.gallery, seed=0)
    score, passes = found.outcomes["QAIR"], found.outcomes["QAIR:Q"]
    assert (passes[score == 0] < 60).any()
    assert (passes[score > 0] == 60).all()
    assert score.mean() < 90
    assert found.perturbed.forward_passes == passes.sum()
    with torch.no_grad():
        e = subject.model(found.perturbed.images)
    for row in range(40):
        clean = returned(subject.gallery, subject.gallery.embeddings[row], row)[:2]
        left = set(clean) & set(returned(subject.gallery, e[row], row)[:2])
        assert bool(left) == bool(score[row] > 0)
    shorter = attack_of(f"qair:n=2,budget=9,by={by}")  # square has another schedule then
    few = shorter.run(subject.model, subject.images, EVERY, subject.gallery, seed=0)
    if by == "nes":
        assert torch.equal(few.outcomes["QAIR:Q"], passes.clamp(max=9))


def test_only_the_order_of_the_list_is_seen(subject: Subject) -> None:
    g = subject.gallery
    other = Gallery(g.embeddings, g.labels.flip(0), "C")  # the same order, other labels
    images = [
        attack_of("qair:budget=30")
        .run(subject.model, subject.images, EVERY, one, seed=0)
        .perturbed.images
        for one in (Gallery(g.embeddings, g.labels, "N"), other)
    ]
    assert torch.equal(*images)


def test_a_short_gallery_and_keys_that_make_no_sense_are_refused(subject: Subject) -> None:
    with pytest.raises(CellError, match="sees the first 40 items, and the gallery has 39"):
        attack_of("qair:n=40").goal(subject.gallery, EVERY, 0)
    for text, said in (
        ("qair:steps=5", "steps is not for a black box"),
        ("qair:by=square,alpha=0.1", "alpha is not for by=square"),
        ("qair:by=pgd", "nes, square"),
        ("qair:n=0", "n must be"),
        ("oa-list:k=12", "n=10 shows fewer than the k=12"),
        ("oa-list:by=pso,alpha=0.1", "alpha is not for by=pso"),
        ("oa-list:restarts=2", "restarts is not for a black box"),
    ):
        with pytest.raises(UserError, match=said):
            attack_of(text)
    assert math.isclose(attack_of("qair").alpha, 0.05)
    assert attack_of("qair:by=square").alpha is None


@pytest.mark.parametrize(("n", "k"), [(5, 5), (9, 4), (39, 10)])
def test_tau_s_is_that_of_algorithm_1(n: int, k: int, subject: Subject) -> None:
    g = subject.gallery
    goal = attack_of(f"oa-list:n={n},k={k},budget=20").goal(g, EVERY, 0)
    e = torch.nn.functional.normalize(g.embeddings + 0.2 * torch.randn(40, 8), dim=1)
    found, loss = goal.outcome(e), goal.value_and_grad(e, 0)[0]
    for row in range(40):
        now, wanted = returned(g, e[row], row)[:n], goal.items[row].tolist()
        scores = []
        for a, b in itertools.combinations(wanted, 2):
            if a not in now or b not in now:
                scores.append(-1)
            else:
                scores.append(1 if now.index(a) < now.index(b) else -1)
        tau = sum(scores) / len(scores)
        assert found["OA-list"][row].item() == pytest.approx(tau)
        assert found["OA-list:Q"][row] == (0 if tau == 1 else 20)
        assert loss[row].item() == pytest.approx(-tau if tau < 1 else torch.finfo(loss.dtype).min)
    white = ATTACKS.get("oa")(k=k).resolve(THREAT).goal(g, EVERY, 0)
    assert torch.equal(white.kept.candidates, goal.items)  # the same order is wanted


@pytest.mark.parametrize("by", ["nes", "spsa", "pso", "random"])
def test_every_search_reorders_and_never_loses_what_it_had(by: str, subject: Subject) -> None:
    attack = attack_of(f"oa-list:k=3,budget=120,by={by}")
    found = attack.run(subject.model, subject.images, EVERY, subject.gallery, seed=0)
    score, clean = found.outcomes["OA-list"], found.clean["OA-list"]
    assert (score >= clean).all()
    assert score.mean() > clean.mean() + 0.1
    passes = found.outcomes["OA-list:Q"]
    assert (passes[clean == 1] == 0).all()
    assert torch.equal(found.perturbed.images[clean == 1], subject.images[clean == 1])
    assert ((passes > 0) & (passes < 120)).any()
    assert found.perturbed.forward_passes == passes.sum()


@dataclass(frozen=True)
class Bowl(RowWise):
    """The squared distance of an image to ``target``, which is its own embedding."""

    seed: int
    index: torch.Tensor
    target: torch.Tensor

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return (e - self.target).square().sum(1).double(), torch.zeros_like(e)


def clip(x: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    return x.clamp(clean - 0.1, clean + 0.1).clamp(0, 1)


@pytest.mark.parametrize("size", [4, 64])
@pytest.mark.parametrize("name", ["pso", "random", "spsa", "nes"])
def test_a_search_is_the_loop_over_one_image(name: str, size: int) -> None:
    """Noise of 64 pixels a side has 32 numbers a side."""
    budget, clean, index = 90, torch.rand(2, 1, size, size), torch.tensor([4, 11])
    target = torch.rand(2, size * size)
    searches: dict[str, Any] = {
        "pso": PSO(0.1, budget),
        "random": RandomSearch(0.1, budget),
        "spsa": NES(0.1, budget, 0.03, 6, 0.02, 0.0, signs=True, side=32),
        "nes": NES(0.1, budget, 0.03, 6, 0.2, 0.9, most=0.1, side=32),
    }
    bowl = Bowl(3, index, target)
    found = searches[name].run(lambda x: x.flatten(1), clean, bowl).images
    for row in range(2):
        x0, own = clean[row : row + 1], index[row : row + 1]

        def u(what: str, x0: torch.Tensor = x0, own: torch.Tensor = own) -> torch.Tensor:
            small = uniform(own, 3, what, (1, min(size, 32), min(size, 32))).float()
            return small.repeat_interleave(size // small.shape[2], 2).repeat_interleave(
                size // small.shape[3], 3
            )

        def f(x: torch.Tensor, row: int = row) -> float:
            return float((x.flatten() - target[row]).square().sum())

        if name == "random":
            shown = [x0]
            shown += [clip(x0 + 0.1 * (2 * u(f"random search {t}") - 1), x0) for t in range(1, 90)]
        elif name == "pso":
            xs = [x0] + [clip(x0 + 0.1 * (2 * u(f"pso x {j}") - 1), x0) for j in range(1, 40)]
            vs = [0.2 * (2 * u(f"pso v {j}") - 1) for j in range(40)]
            own_best, shown = list(xs), list(xs)
            leader = min(xs, key=f)
            for t in range(40, 90):
                j = t % 40
                vs[j] = (
                    1.1 * vs[j]
                    + 0.57 * u(f"pso own {t}") * (own_best[j] - xs[j])
                    + 0.44 * u(f"pso all {t}") * (leader - xs[j])
                )
                xs[j] = clip(xs[j] + vs[j], x0)
                shown.append(xs[j])
                own_best[j] = min(own_best[j], xs[j], key=f)
                leader = min(leader, xs[j], key=f)
        else:
            x, shown, g = x0, [], torch.zeros_like(x0)
            while len(shown) < budget:
                shown.append(x)
                g = 0.9 * g if name == "nes" else torch.zeros_like(x)
                for _ in range(3):
                    u_k = coarse(normal, own, 3, f"nes {len(shown)}", x)
                    noise = (0.2 * u_k).clamp(-0.1, 0.1) if name == "nes" else 0.02 * u_k.sign()
                    pair = [clip(x + s * noise, x0) for s in (1, -1)]
                    shown += pair
                    g += (f(pair[0]) - f(pair[1])) * (pair[0] - pair[1])
                x = clip(x - 0.03 * g.sign(), x0)
            shown = shown[:budget]
        torch.testing.assert_close(found[row : row + 1], min(shown, key=f), rtol=0, atol=1e-5)
