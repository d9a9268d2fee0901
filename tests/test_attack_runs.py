"""What holds for all attacks: batches, starts, first steps, restarts and the bounds of outcomes."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from dmlbench.attacks import embedding_shift
from dmlbench.attacks.base import Attack, Column, Gallery, RowWise
from dmlbench.attacks.embedding_shift import beside
from dmlbench.attacks.engine.targets import random_start
from dmlbench.common.errors import CellError
from dmlbench.compute.embedding import EmbeddingModel, embed
from dmlbench.core.registry import Card
from dmlbench.datasets.base import RetrievalData, Split
from dmlbench.metrics.distance import BOUNDS, Metric
from tests.every_attack import EVERY, LONG
from tests.twins import THREAT, make_gallery, resolved


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
    [
        pytest.param(name, suite, marks=pytest.mark.slow if name in LONG else ())
        for name in EVERY
        for suite in ("strict", "ers")[: 2 - (name in TOP1)]
    ],
)
def test_batches_and_the_active_set_change_no_outcome(
    name: str, suite: str, model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    index = torch.arange(40)
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
    images: torch.Tensor,
    gallery: Gallery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = torch.arange(40)
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
    model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    index = torch.arange(40)
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
    model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    index = torch.arange(40)
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
