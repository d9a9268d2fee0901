"""QA, SP-QA, ES, TMA, LTM, GTM and GTT against explicit loops, in both suites."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dmlbench.attacks import misranking
from dmlbench.attacks.base import Gallery
from dmlbench.attacks.engine import query_loss
from dmlbench.attacks.query import SemanticsPreservingGoal
from dmlbench.common.errors import CellError
from tests.twins import (
    N,
    compare,
    distance,
    make_gallery,
    resolved,
    slow_qa,
    slow_rank,
)


@pytest.mark.parametrize(
    ("name", "held"),
    [("ca+", "queries"), ("ca-", "queries"), ("tma", "target"),
     *((one, "candidates") for one in ("qa+", "qa-", "sp-qa+", "sp-qa-"))],
)  # fmt: skip
def test_targets_are_drawn_with_the_seed(name: str, held: str) -> None:
    g, index = make_gallery("N", items=400), torch.arange(20)  # QA- draws from the nearest 4
    first, again, other = (
        getattr(resolved(name, "strict").goal(g, index, seed=seed), held) for seed in (2, 2, 3)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(torch.float32, marks=pytest.mark.slow), torch.float64],
    ids=["f32", "f64"],
)
@pytest.mark.parametrize("suite", ["strict", "ers"])
@pytest.mark.parametrize("metric", ["N", "E", "C"])
@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize("name", ["qa+", "qa-"])
def test_query_attacks_equal_their_definition(
    name: str, m: int, metric: str, suite: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_loss, "CHUNK", 17)  # the gallery spans several chunks
    g, index = make_gallery(metric, dtype), torch.tensor([3, 0, 59, 17])
    goal: Any = resolved(name, suite, m=m).goal(g, index, seed=2)
    e = g.embeddings[index] + 0.3 * torch.randn(4, 6, dtype=dtype)
    rank = goal.outcome(e)[name.upper()]
    for row, own in enumerate(index.tolist()):
        candidates = goal.candidates[row].tolist()
        assert own not in candidates
        x = e[row].clone().requires_grad_()
        expected = slow_qa(x, own, candidates, g, name == "qa+", suite)
        compare(goal, e, row, expected, x, 2e-6 if dtype == torch.float32 else 1e-12)
        slow = slow_rank(e[row].double(), own, candidates, _double(g), suite)
        assert rank[row].item() == pytest.approx(slow)


def _double(g: Gallery) -> Gallery:
    return Gallery(g.embeddings.double(), g.labels, g.metric)


@pytest.mark.parametrize("metric", ["N", "E", "C"])
@pytest.mark.parametrize("name", ["sp-qa+", "sp-qa-"])
def test_semantics_preserving_attacks_add_a_weighted_term(name: str, metric: str) -> None:
    g, index = make_gallery(metric), torch.tensor([3, 41])
    goal = resolved(name, "strict", m=2).goal(g, index, seed=2)
    assert isinstance(goal, SemanticsPreservingGoal)
    e = g.embeddings[index] + 0.3 * torch.randn(2, 6, dtype=torch.float64)
    outcome = goal.outcome(e)
    for row, own in enumerate(index.tolist()):
        candidates = goal.candidates[row].tolist()
        kept = goal.semantics.candidates[row].tolist()
        d = [distance(g.embeddings[own], x, metric).item() for x in g.embeddings]
        order = sorted((n for n in range(N) if n != own), key=lambda n: d[n])
        assert kept == [n for n in order if n not in candidates][:5]
        x = e[row].clone().requires_grad_()
        loss = slow_qa(x, own, candidates, g, name == "sp-qa+", "strict")
        preserved = slow_qa(x, own, kept, g, up=True, suite="strict")
        xi = min(math.exp(3.0 * preserved.item()), 1e9)
        compare(goal, e, row, loss + xi * preserved, x, 1e-12)
        slow = slow_rank(e[row], own, kept, g, "strict")
        assert outcome[f"{name.upper()}:GT"][row].item() == pytest.approx(slow)


@pytest.mark.parametrize("name", ["sp-qa+", "sp-qa-"])
def test_no_item_is_both_kept_in_place_and_moved(name: str) -> None:
    """So a gallery in which a query sees too few is refused."""
    x = torch.nn.functional.normalize(torch.randn(7, 6, dtype=torch.float64), dim=1)
    attack, index = resolved(name, "strict"), torch.arange(6)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    goal: Any = attack.goal(Gallery(x, labels, "N"), index, seed=0)
    both = torch.cat([goal.semantics.candidates, goal.candidates], 1).sort(1).values
    assert both.tolist() == [[n for n in range(7) if n != own] for own in range(6)]
    small = Gallery(x[:6], labels[:6], "N")
    with pytest.raises(CellError, match="keeps 5 items in place and moves 1, and a query sees 5"):
        attack.goal(small, index, seed=0)


def test_xi_is_bounded() -> None:
    g, index = make_gallery("N"), torch.tensor([3])
    goal = resolved("sp-qa+", "strict", xi=1e9).goal(g, index, seed=2)
    loss, gradient = goal.value_and_grad(-g.embeddings[index], 0)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    assert loss.max() > 1e8


@pytest.mark.parametrize("metric", ["N", "E", "C"])
def test_ltm_equals_its_definition(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(misranking, "CHUNK", 17)
    for suite in ("strict", "ers"):
        g, index = make_gallery(metric), torch.tensor([3, 0, 59, 17])
        goal = resolved("ltm", suite).goal(g, index, seed=0)
        e = g.embeddings[index] + 0.2 * torch.randn(4, 6, dtype=torch.float64)
        for row, own in enumerate(index.tolist()):
            x = e[row].clone().requires_grad_()
            d = [distance(x, z, metric) for z in g.embeddings]
            other = [d[n] for n in range(N) if g.labels[n] != g.labels[own]]
            same = [
                d[n]
                for n in range(N)
                if g.labels[n] == g.labels[own] and (n != own or suite == "ers")
            ]
            expected = (torch.stack(other).max() - torch.stack(same).min()).clamp(min=0)
            compare(goal, e, row, expected, x, 1e-12)


def test_ltm_leaves_a_query_alone_in_its_class_alone() -> None:
    x = torch.nn.functional.normalize(torch.randn(9, 4), dim=1)
    g = Gallery(x, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2]), "N")
    index = torch.tensor([8, 0])
    goal = resolved("ltm", "strict").goal(g, index, seed=0)
    loss, gradient = goal.value_and_grad(x[index], 0)
    assert loss[0] == 0
    assert gradient[0].abs().max() == 0
    recall = goal.outcome(x[index])["LTM"]
    assert recall[0].isnan()
    assert not recall[1].isnan()


@pytest.mark.parametrize("metric", ["N", "E", "C"])
def test_gtm_targets_the_nearest_item_of_another_class(metric: str) -> None:
    g, index = make_gallery(metric), torch.arange(N)
    strict: Any = resolved("gtm", "strict").goal(g, index, seed=0)
    slip: Any = resolved("gtm", "ers").goal(g, index, seed=0)
    for own in range(N):
        d = [distance(g.embeddings[own], x, metric).item() for x in g.embeddings]
        order = sorted((n for n in range(N) if n != own), key=lambda n: d[n])
        nearest = next(n for n in order if g.labels[n] != g.labels[own])
        assert torch.equal(strict.target[own], g.embeddings[nearest])
        unlike = [n for n in range(N) if g.labels[n] != g.labels[order[0]]]
        closest = min((n for n in unlike if n != own), key=lambda n: d[n])
        assert torch.equal(slip.target[own], g.embeddings[unlike.index(closest)])
    e = g.embeddings + 0.2 * torch.randn(N, 6, dtype=torch.float64)
    x = e[7].clone().requires_grad_()
    compare(strict, e, 7, distance(x, strict.target[7], metric), x, 1e-12)


@pytest.mark.parametrize("suite", ["strict", "ers"])
@pytest.mark.parametrize("metric", ["N", "E", "C"])
def test_gtt_pushes_the_top1_out_of_the_top4(metric: str, suite: str) -> None:
    g, index = make_gallery(metric), torch.arange(N)
    goal: Any = resolved("gtt", suite).goal(g, index, seed=0)
    e = g.embeddings + 0.4 * torch.randn(N, 6, dtype=torch.float64)
    outcome = goal.outcome(e)["GTT"]
    for own in range(N):
        clean = [distance(g.embeddings[own], x, metric).item() for x in g.embeddings]
        top1 = min((n for n in range(N) if n != own), key=lambda n: clean[n])
        assert goal.candidates[own].tolist() == [top1]
        after = [distance(e[own], x, metric).item() for x in g.embeddings]
        top4 = sorted((n for n in range(N) if n != own), key=lambda n: after[n])[:4]
        assert outcome[own].item() == 100 * (top1 in top4)
    x = e[5].clone().requires_grad_()
    expected = slow_qa(x, 5, goal.candidates[5].tolist(), g, up=False, suite=suite)
    compare(goal, e, 5, expected, x, 1e-12)


@pytest.mark.parametrize("name", ["tma", "odfa", "es", "ltm", "qa+"])
def test_an_embedding_of_zero_has_a_loss_and_a_gradient(name: str) -> None:
    """A black image may turn all units of a network off."""
    g, index = make_gallery("N"), torch.tensor([3, 0])
    loss, gradient = resolved(name, "strict").goal(g, index, seed=0).value_and_grad(
        torch.zeros(2, 6, dtype=torch.float64), 1
    )  # fmt: skip
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("metric", ["N", "E", "C"])
def test_es_and_tma_equal_their_definition(metric: str) -> None:
    g, index = make_gallery(metric), torch.tensor([3, 0, 59])
    e = g.embeddings[index] + 0.2 * torch.randn(3, 6, dtype=torch.float64)
    shift = resolved("es", "strict").goal(g, index, seed=0)
    x = e[1].clone().requires_grad_()
    compare(shift, e, 1, -distance(x, g.embeddings[0], metric), x, 1e-12)
    found = shift.outcome(e)
    assert found["ES:D"][1].item() == pytest.approx(distance(e[1], g.embeddings[0], metric).item())
    assert torch.equal(found["ES:R"], g.recall_at_1(e, index))
    _, gradient = shift.value_and_grad(g.embeddings[index], 0)
    assert gradient.abs().min() > 0  # the offset of the first step
    mismatch: Any = resolved("tma", "strict").goal(g, index, seed=0)
    x = e[2].clone().requires_grad_()
    cosine = torch.nn.functional.cosine_similarity(x, mismatch.target[2], dim=0)
    compare(mismatch, e, 2, 1 - cosine, x, 1e-12)
    assert mismatch.outcome(e)["TMA"][2].item() == pytest.approx(cosine.item())
