"""QA, SP-QA, ES, TMA, LTM, GTM and GTT against explicit loops, in both suites."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from dmlbench.attacks import embedding_shift, misranking
from dmlbench.attacks.base import ATTACKS, Attack, Column, Gallery, RowWise
from dmlbench.attacks.embedding_shift import beside
from dmlbench.attacks.engine import query_loss
from dmlbench.attacks.engine.targets import random_start
from dmlbench.attacks.query import SemanticsPreservingGoal
from dmlbench.common.errors import CellError
from dmlbench.compute.embedding import EmbeddingModel, embed
from dmlbench.core.protocol import Threat
from dmlbench.core.registry import Card
from dmlbench.datasets.base import RetrievalData, Split
from dmlbench.metrics.distance import BOUNDS, Metric
from dmlbench.testing import tiny_network
from tests.every_attack import EVERY

N = 60
THREAT = Threat(eps=0.1, alpha=0.03, steps=6, sp_scale=3.0)


def resolved(name: str, suite: str, **fields: Any) -> Attack:
    return ATTACKS.get(name)(**fields).resolve(replace(THREAT, suite=suite))


def make_gallery(metric: str, dtype: torch.dtype = torch.float64, items: int = N) -> Gallery:
    x = torch.randn(items, 6, dtype=dtype)
    if metric != "E":
        x = torch.nn.functional.normalize(x, dim=1)
    return Gallery(x, torch.arange(items) % 5, metric)  # type: ignore[arg-type]


def distance(a: torch.Tensor, b: torch.Tensor, metric: str) -> torch.Tensor:
    return 1 - a @ b if metric == "C" else (a - b).norm()


def ranked(suite: str, own: int, c: int) -> list[int]:
    """The items that candidate ``c`` is ranked among."""
    return [n for n in range(N) if suite == "ers" or n not in (own, c)]


def slow_qa(
    e: torch.Tensor, own: int, candidates: list[int], g: Gallery, up: bool, suite: str
) -> torch.Tensor:
    terms = []
    for c in candidates:
        a = distance(e, g.embeddings[c], g.metric)
        for n in ranked(suite, own, c):
            b = distance(e, g.embeddings[n], g.metric)
            terms.append((a - b if up else b - a).clamp(min=0))
    return torch.stack(terms).mean()


def slow_rank(e: torch.Tensor, own: int, candidates: list[int], g: Gallery, suite: str) -> float:
    ranks = []
    for c in candidates:
        a = distance(e, g.embeddings[c], g.metric)
        b = [distance(e, g.embeddings[n], g.metric) for n in ranked(suite, own, c) if n != c]
        ranks.append(100 * sum(bool(x < a) for x in b) / len(ranked(suite, own, c)))
    return sum(ranks) / len(ranks)


def compare(
    goal: Any, e: torch.Tensor, row: int, expected: torch.Tensor, x: torch.Tensor, tolerance: float
) -> None:
    loss, gradient = goal.value_and_grad(e, 1)
    (slope,) = torch.autograd.grad(expected, x)
    assert loss[row].item() == pytest.approx(expected.item(), rel=5 * tolerance, abs=tolerance)
    assert (gradient[row] - slope).norm() <= 2 * tolerance * max(1.0, slope.norm().item())


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
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


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    torch.manual_seed(0)
    return tiny_network().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def gallery(model: EmbeddingModel, tiny: RetrievalData) -> Gallery:
    def split(one: Split) -> Gallery:
        x = tiny.evaluation_pixels(torch.from_numpy(one.images))
        labels, e = torch.from_numpy(one.labels), embed(model, x)
        return Gallery(e, labels, "N", images=lambda index: x[index])

    return replace(split(tiny.test), train=lambda: split(tiny.train))


TOP1 = (
    "margin",
    "dlr",
    "knn",
    "shift",
    "top1",
    "radius",
    "square",
    "nes",
    "oa",
    "odfa",
    "qair",
    "oa-list",
    "certified",
)  # the same in both suites


@pytest.mark.parametrize(
    ("name", "suite"),
    [(name, suite) for name in EVERY for suite in ("strict", "ers")[: 2 - (name in TOP1)]],
)
def test_batches_and_the_active_set_change_no_outcome(
    name: str, suite: str, model: EmbeddingModel, gallery: Gallery, tiny: RetrievalData
) -> None:
    images, index = tiny.evaluation_pixels(torch.from_numpy(tiny.test.images)), torch.arange(40)
    attack = replace(EVERY[name], suite=suite).resolve(THREAT)

    def outcomes(batch: int, count: int, active_set: bool) -> dict[str, torch.Tensor]:
        parts = [
            attack.run(model, images[i], i, gallery, seed=0, active_set=active_set).outcomes
            for i in torch.split(index[:count], batch)
        ]
        return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}

    reference = outcomes(40, 40, active_set=False)
    for batch, count in ((1, 4), (16, 40), (40, 40)):  # alone a query costs as much as 32
        for column, values in outcomes(batch, count, active_set=True).items():
            assert torch.equal(values, reference[column][:count]), (column, batch)


def test_es_of_the_published_code_is_read_before_the_last_step(
    model: EmbeddingModel,
    gallery: Gallery,
    tiny: RetrievalData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, index = tiny.evaluation_pixels(torch.from_numpy(tiny.test.images)), torch.arange(40)
    monkeypatch.setattr(embedding_shift, "PUBLISHED_FIRST_OFFSET", embedding_shift.FIRST_OFFSET)
    found = {
        (suite, steps): resolved("es", suite, steps=steps)
        .run(model, images, index, gallery, seed=0)
        .outcomes
        for suite in ("strict", "ers")
        for steps in (5, 6)
    }
    assert torch.equal(found["ers", 6]["ES:D"], found["strict", 5]["ES:D"])
    assert torch.equal(found["ers", 6]["ES:R"], found["strict", 6]["ES:R"])


def test_es_by_apgd_reports_the_image_that_it_returns(
    model: EmbeddingModel, gallery: Gallery, tiny: RetrievalData
) -> None:
    images, index = tiny.evaluation_pixels(torch.from_numpy(tiny.test.images)), torch.arange(40)
    attack = resolved("es", "ers", optimizer="apgd", steps=5)
    found = attack.run(model, images, index, gallery, seed=0)
    with torch.no_grad():
        e = embed(model, found.perturbed.images)
    assert torch.equal(found.outcomes["ES:D"], attack.goal(gallery, index, 0).outcome(e)["ES:D"])
    assert attack.version > resolved("es", "ers").version == attack.card.version
    assert resolved("es", "strict", optimizer="apgd").version == attack.card.version


@pytest.mark.parametrize("length", [0.0, 0.3, 3.0, 300.0, 3e5])
@pytest.mark.parametrize("suite", ["strict", "ers"])
@pytest.mark.parametrize("name", ["es", "shift"])
def test_the_first_step_leaves_an_embedding_of_any_length(
    name: str, suite: str, length: float
) -> None:
    """Under E; under N and C it is to the bit that of version 1."""
    unit_length, index = make_gallery("N", torch.float32), torch.arange(8)
    g = Gallery(length * unit_length.embeddings, unit_length.labels, "E")
    e = g.embeddings[index]
    attack: Any = resolved(name, suite)
    origin = beside(e, 1e-7, "E")
    assert (origin != e).all()
    if length <= 0.3:
        assert torch.equal(origin, e + 1e-7)
    loss, gradient = attack.goal(g, index, 0).value_and_grad(e, 0)
    where_right = gradient.any(1) | (loss == torch.finfo(loss.dtype).min)
    assert where_right.all()
    unit = torch.nn.functional.normalize(e, dim=1)
    for metric in ("N", "C"):
        assert torch.equal(beside(unit, 1e-7, metric), unit + 1e-7)
    raised = [attack.version_under(metric) - attack.version for metric in ("N", "C", "E")]
    assert raised == [0, int((name, suite) == ("es", "ers")), 1]


def test_the_first_step_of_es_is_the_published_codes() -> None:
    g, index = make_gallery("N", torch.float32), torch.arange(4)
    e = g.embeddings[index]
    _, ours = resolved("es", "ers").goal(g, index, seed=0).value_and_grad(e, 0)
    x = e.clone().requires_grad_()
    loss = -torch.nn.functional.pairwise_distance(x, e + 1e-7).sum()
    (theirs,) = torch.autograd.grad(loss, x)
    assert torch.equal(ours.sign(), theirs.sign())


def test_the_first_step_of_es_is_the_published_codes_under_c() -> None:
    g, index = make_gallery("C", torch.float64), torch.arange(8)
    e = g.embeddings[index]
    _, ours = resolved("es", "ers").goal(g, index, seed=0).value_and_grad(e, 0)
    x = e.clone().requires_grad_()
    loss = torch.nn.functional.cosine_similarity(x, e + 1e-7).sum()
    (theirs,) = torch.autograd.grad(loss, x)
    tangent = ours - (ours * e).sum(1, keepdim=True) * e  # e has unit length and keeps it
    assert (torch.nn.functional.cosine_similarity(tangent, theirs, dim=1) > 0.99).all()


def test_restarts_keep_the_worst_of_each_query(
    model: EmbeddingModel, gallery: Gallery, tiny: RetrievalData
) -> None:
    images, index = tiny.evaluation_pixels(torch.from_numpy(tiny.test.images)), torch.arange(40)
    found = [
        resolved("es", "strict", restarts=k).run(model, images, index, gallery, seed=0)
        for k in (1, 3)
    ]
    one, three = found[0].outcomes, found[1].outcomes
    assert (three["ES:D"] >= one["ES:D"]).all()
    assert (three["ES:R"] <= one["ES:R"]).all()
    assert (three["ES:D"] > one["ES:D"]).any()
    assert found[1].perturbed.full_passes == 3 * found[0].perturbed.full_passes
    assert (found[1].perturbed.images - images).abs().max() <= 0.1 + 1e-6


@dataclass(frozen=True)
class Says(RowWise):
    """Moves nothing and reports ``value`` for every query."""

    value: torch.Tensor

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros_like(e[:, 0]), torch.zeros_like(e)

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"X": self.value}


@pytest.mark.parametrize(
    ("column", "metric", "value", "words"),
    [
        (Column("X", "%", "higher"), "N", 250.0, "x: outcome X is 250% for a query; .* 0 and 100"),
        (Column("X", "%", "higher"), "N", -0.1, "is -0.1% for a query"),
        (Column("X", "%", "higher"), "N", 100.00001, ""),
        (Column("X", "", "higher"), "N", 250.0, ""),
        (Column("X", "", "lower", bounds=(-1, 1)), "C", 1.01, "within -1 and 1"),
        (Column("X", "", "lower", bounds=BOUNDS), "N", 2.01, "within 0 and 2"),
        (Column("X", "", "lower", bounds=BOUNDS), "E", 250.0, ""),
        (Column("X", "", "lower", bounds=BOUNDS), "E", -1.0, "within 0 and inf"),
        (Column("X", "%", "higher"), "N", math.nan, ""),
        (Column("X", "", "higher"), "N", math.inf, "finite numbers"),
    ],
)
def test_an_outcome_outside_its_bounds_is_refused(
    model: EmbeddingModel, column: Column, metric: Metric, value: float, words: str
) -> None:
    class Saying(Attack):
        card = Card("x", "says a number")
        columns = (column,)

        def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> Says:
            return Says(torch.tensor([value, 1.0]))

    x = torch.nn.functional.normalize(torch.randn(9, 8), dim=1)
    gallery, attack = Gallery(x, torch.arange(9) % 3, metric), Saying().resolve(THREAT)
    with pytest.raises(CellError, match=words) if words else nullcontext():
        attack.run(model, torch.rand(2, 1, 8, 8), torch.arange(2), gallery, seed=0)


def test_random_starts_come_from_the_querys_identity() -> None:
    images = torch.rand(4, 1, 8, 8)
    index = torch.tensor([5, 9, 2, 7])
    whole = random_start(images, 0.1, index, seed=0, restart=1)
    assert (whole - images).abs().max() <= 0.1 + 1e-6
    part = random_start(images[2:], 0.1, index[2:], seed=0, restart=1)
    assert torch.equal(part, whole[2:])
    assert not torch.equal(random_start(images, 0.1, index, seed=0, restart=2), whole)


def test_a_gallery_of_one_class_or_one_item_is_refused() -> None:
    x = torch.nn.functional.normalize(torch.randn(5, 4), dim=1)
    single = Gallery(x, torch.zeros(5, dtype=torch.long), "N")
    with pytest.raises(CellError, match="single class"):
        resolved("gtm", "strict").goal(single, torch.tensor([0]), seed=0)
    with pytest.raises(CellError, match="nearest 1 others do not exist"):
        Gallery(x[:1], torch.tensor([0]), "N").nearest(torch.tensor([0]), 1)
    with pytest.raises(CellError, match="draws 9 targets"):
        resolved("qa-", "strict", m=9).goal(single, torch.tensor([0]), seed=0)


@pytest.mark.parametrize(
    "name", ["ca+", "ca-", "qa+", "qa-", "sp-qa+", "sp-qa-", "gtt", "gtt:ers", "qa+:ers"]
)
def test_an_item_that_is_ranked_alone_is_refused(name: str) -> None:
    """Of two items a query sees the other one alone; the published code ranks it with both."""
    name, _, suite = name.partition(":")
    x = torch.nn.functional.normalize(torch.randn(2, 4), dim=1)
    two, index = Gallery(x, torch.tensor([0, 1]), "N"), torch.arange(2)
    attack = resolved(name, suite or "strict")
    refused = pytest.raises(CellError, match="gallery of 2 is too small: a query sees 1 of its")
    with nullcontext() if suite else refused:
        loss, gradient = attack.goal(two, index, seed=0).value_and_grad(x + 0.1, 0)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()


def test_only_as_many_of_the_nearest_are_kept_as_were_asked_for() -> None:
    g, index = make_gallery("N", items=600), torch.arange(600)
    x = g.embeddings.clone()
    x[300:] = x[:300]  # each twice: equally near
    g = replace(g, embeddings=x, queries=None, _shared={})
    one = g.nearest(index, 1)
    assert g._shared["nearest 6"].table.shape == (600, 1)
    assert torch.equal(g.neighbourhood(index, 1)[:, :1], one)
    assert g._shared["nearest 6"].table.shape == (600, 6)
    g.nearest(index, 40)
    assert torch.equal(g.nearest(index, 1), one)


def test_nearest_is_sorted_kept_and_leaves_the_item_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row is searched for once, in whatever order and however often it is asked for."""
    g, searched = make_gallery("E"), []
    others = Gallery._others
    monkeypatch.setattr(
        Gallery, "_others", lambda self, rows: searched.extend(rows.tolist()) or others(self, rows)
    )
    d = torch.cdist(g.embeddings, g.embeddings).fill_diagonal_(torch.inf)
    order = d.argsort(dim=1)
    for index in (torch.tensor([4, 1, 4]), torch.arange(len(g)), torch.tensor([2])):
        assert torch.equal(g.nearest(index, 3), order[index, :3])
    assert sorted(searched) == list(range(len(g)))
    assert torch.equal(g.nearest(torch.tensor([5]), 7), order[5:6, :7])  # wider: searched anew
    assert torch.equal(g.nearest(torch.tensor([5]), 2), order[5:6, :2])
    assert searched[len(g) :] == [5, 5]  # a table for 7, and one for 2
