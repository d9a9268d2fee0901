"""QAIR against a user who reads lists, and what it must not see."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dmlbench.attacks.base import ATTACKS, Gallery
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
    ):
        with pytest.raises(UserError, match=said):
            attack_of(text)
    assert math.isclose(attack_of("qair").alpha, 0.05)
    assert attack_of("qair:by=square").alpha is None
