"""Queries and gallery apart: every number against an explicit loop over the queries."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dmlbench as dml
from dmlbench.attacks.base import ATTACKS
from dmlbench.core import spec
from dmlbench.core.protocol import Threat
from dmlbench.datasets.arrays import ArrayDataset
from dmlbench.evaluation import pictures
from dmlbench.evaluation.attacked_queries import AttackedQuery
from dmlbench.metrics.collapse import chance_recall
from dmlbench.metrics.relevance import Lists
from dmlbench.metrics.retrieval import retrieval
from tests.apart import FORMS, D, N, Q, World, goal_of, made, moved
from tests.twins import slow_metrics


@pytest.fixture(params=list(itertools.product(FORMS, ("N", "E", "C"))), ids=str)
def world(request: pytest.FixtureRequest) -> World:
    return World(*request.param)


def test_metrics_and_neighbours(world: World) -> None:
    e = moved(world)
    found = retrieval(e, world.index, world.x, world.data.relevance(), world.gallery.metric)
    shares = []
    for i in range(len(e)):
        right = sorted(world.d(e[i], n) for n in world.right[i])
        expected = slow_metrics(right, [world.d(e[i], n) for n in world.wrong(i)])
        for name, value in found.scores.items():
            wanted = float("nan") if expected is None else expected[name]
            assert value[i].item() == pytest.approx(wanted, abs=1e-9, nan_ok=True), name
        near = sorted(world.sees[i], key=lambda n: world.d(world.q[i], n))
        least = world.gallery.least_seen
        assert world.gallery.nearest(torch.tensor([i]), least)[0].tolist() == near[:least]
        other = min(world.wrong(i), key=lambda n: world.d(world.q[i], n))
        assert world.gallery.nearest_of_another_class(torch.tensor([i])) == other
        if world.right[i]:
            shares.append(len(world.right[i]) / len(world.sees[i]))
    chance = chance_recall(world.gallery.relevance, N)
    assert chance == pytest.approx(100 * sum(shares) / len(shares))
    assert min(map(len, world.sees)) < N - 1


@pytest.mark.parametrize("name", ["qa+:m=3", "qa-:m=3", "sp-qa+:m=2", "sp-qa-:m=2", "gtt"])
@pytest.mark.parametrize("suite", ["strict", "ers"])
def test_query_attacks(world: World, name: str, suite: str) -> None:
    goal, e = goal_of(world, name, suite), moved(world)
    loss, outcome = goal.value_and_grad(e, 1)[0], goal.outcome(e)
    sign = 1 if "+" in name else -1

    def hinge(i: int, candidates: list[int], sign: int) -> tuple[float, float]:
        """Loss and mean percentile rank of candidates in the list of a query."""
        total, ranks = 0.0, []
        for c in candidates:
            seen = world.sees[i] if suite == "strict" else range(N)
            a = world.d(e[i], c)
            others = [world.d(e[i], n) for n in seen if suite == "ers" or n != c]
            total += sum(max(0.0, sign * (a - b)) for b in others) / len(others)
            ranks.append(100 * sum(b < a for b in others) / len(others))
        return total / len(candidates), sum(ranks) / len(ranks)

    for i in range(len(e)):
        chosen = goal.candidates[i].tolist()
        assert set(chosen) <= set(world.sees[i])
        expected, rank = hinge(i, chosen, sign)
        if name == "gtt":
            near = sorted(world.sees[i], key=lambda n: world.d(world.q[i], n))
            assert chosen == near[:1]
            ahead = sum(world.d(e[i], n) < world.d(e[i], chosen[0]) for n in world.sees[i])
            assert outcome["GTT"][i] == 100 * (ahead < 4)
        else:
            assert outcome[goal.column][i].item() == pytest.approx(rank, abs=1e-9)
        if name.startswith("sp"):
            kept = goal.semantics.candidates[i].tolist()
            near = sorted(world.sees[i], key=lambda n: world.d(world.q[i], n))
            assert kept == [n for n in near if n not in chosen][:5]
            more, rank = hinge(i, kept, 1)
            expected += min(np.exp(2 * more), 1e9) * more
            assert outcome[f"{goal.column}:GT"][i].item() == pytest.approx(rank, abs=1e-9)
        assert loss[i].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["ca+:w=3", "ca-:w=3"])
@pytest.mark.parametrize("suite", ["strict", "ers"])
def test_candidate_attacks(world: World, name: str, suite: str) -> None:
    attack = spec.parse(name, ATTACKS).resolve(Threat(0.1, 0.02, 2, suite))
    goal = goal_of(world, name, suite)
    candidates = world.gallery.candidates.tolist()
    assert len(set(candidates)) == len(candidates)
    e = world.x[candidates] + 0.1
    loss, outcome = goal.value_and_grad(e, 1)[0], goal.outcome(e)[attack.columns[0].name]
    sign = 1 if "+" in name else -1
    drawn = world.gallery.turned.draw(
        world.index,
        3,
        0,
        attack.card.name,
        attack.pool(world.gallery, world.index),  # type: ignore[attr-defined]
    )
    for i, c in enumerate(candidates):
        see = [k for k in range(len(world.q)) if c in world.sees[k]]
        queries = drawn[i].tolist()
        assert len(set(queries)) == 3
        assert set(queries) <= set(see)
        if name == "ca-:w=3":  # the nearest 1%, at least 3
            near = sorted(see, key=lambda k: world.d(world.q[k], c))
            assert set(queries) == set(near[:3])
        total, ranks = 0.0, []
        for k in queries:
            cosine = world.gallery.metric == "C"
            a = float(1 - world.q[k] @ e[i] if cosine else (world.q[k] - e[i]).norm())
            seen = [n for n in world.sees[k] if n != c] if suite == "strict" else range(N)
            others = [world.d(world.q[k], n) for n in seen]
            total += sum(max(0.0, sign * (a - b)) for b in others) / len(others) / 3
            ranks.append(100 * sum(b < a for b in others) / len(others))
        assert loss[i].item() == pytest.approx(total, abs=1e-7)
        assert outcome[i].item() == pytest.approx(float(np.mean(ranks)), abs=1e-6)


def test_an_attack_begins_at_what_it_perturbs() -> None:
    """The query's embedding; of an attack on candidates that of the query's candidate."""
    world = World("classes")
    for name, expected in (("qa+", world.q), ("ca+", world.x[world.gallery.candidates])):
        attack = spec.parse(name, ATTACKS)
        assert torch.equal(attack.clean(world.gallery, world.index), expected[world.index])


def test_misranking_shift_and_mismatch(world: World) -> None:
    e = moved(world)
    ltm, gtm, es, tma = (goal_of(world, name) for name in ("ltm", "gtm", "es", "tma"))
    found, shifted, reached = ltm.value_and_grad(e, 1)[0], es.outcome(e), tma.outcome(e)["TMA"]
    theirs = goal_of(world, "ltm", "ers").value_and_grad(e, 1)[0]
    targets = world.gallery.draw(world.index, 1, 0, "tma")[:, 0].tolist()
    for i in range(len(e)):
        right, wrong = world.right[i], world.wrong(i)
        far = max(world.d(e[i], n) for n in wrong)
        expected = max(0.0, far - min(world.d(e[i], n) for n in right)) if right else 0.0
        assert found[i].item() == pytest.approx(expected, abs=1e-6)
        every = world.gallery.relevance.positives.of(world.index[i : i + 1])[0].tolist()
        every = [n for n in every if n >= 0]  # in ers also those that are hidden
        expected = max(0.0, far - min(world.d(e[i], n) for n in every)) if every else 0.0
        assert theirs[i].item() == pytest.approx(expected, abs=1e-6)
        near = min(wrong, key=lambda n: world.d(world.q[i], n))
        assert torch.equal(gtm.target[i], world.x[near])
        first = min(world.sees[i], key=lambda n: world.d(e[i], n))
        hit = 100.0 * (first in right) if right else float("nan")
        for value in (shifted["ES:R"], ltm.outcome(e)["LTM"], gtm.outcome(e)["GTM"]):
            assert value[i].item() == pytest.approx(hit, nan_ok=True)
        origin = world.q[i]
        gap = 1 - e[i] @ origin if world.gallery.metric == "C" else (e[i] - origin).norm()
        assert shifted["ES:D"][i].item() == pytest.approx(float(gap))
        assert targets[i] in world.sees[i]
        cosine = torch.nn.functional.cosine_similarity(e[i], world.x[targets[i]], dim=0)
        assert reached[i].item() == pytest.approx(float(cosine))


@pytest.mark.parametrize("name", ["margin", "dlr", "knn", "margin:of=item"])
def test_attacks_on_the_top1(world: World, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmlbench.attacks.engine.classes.CHUNK", 7)
    goal, e = goal_of(world, name), moved(world)
    loss, ahead = goal.value_and_grad(e, 1)[0], goal.ranked().value_and_grad(e, 1)[0]
    lowest = torch.finfo(torch.float64).min
    labels = world.gallery.labels.tolist()
    for i in range(len(e)):
        right, wrong = world.right[i], world.wrong(i)
        if "item" in name:
            right = [min(world.sees[i], key=lambda n: world.d(world.q[i], n))]
            wrong = [n for n in world.sees[i] if n not in right]
        if not right:
            assert loss[i] == 0
            assert ahead[i] == 0
            continue
        own = sorted(world.d(e[i], n) for n in right)
        groups: dict[Any, list[float]] = {}
        for n in wrong:  # a distractor, and an item without a class, is a class of its own
            alone = labels[n] < 0 or "item" in name
            groups.setdefault(("item", n) if alone else labels[n], []).append(world.d(e[i], n))
        others = sorted(sorted(group) for group in groups.values())
        margin = others[0][0] - own[0]
        expected = margin
        if name == "dlr" and len(others) > 1:
            expected = margin / (others[1][0] - own[0])
        if name == "knn":
            means = [float(np.mean(group[:10])) for group in others]
            expected = min(means) - float(np.mean(own[:10]))
        assert loss[i].item() == pytest.approx(lowest if margin < 0 else expected, abs=1e-6)
        distances = sorted(world.d(e[i], n) for n in wrong)[:10]
        counts = [sum(a < b for a in own) for b in distances]
        if counts[0] == 0:
            assert ahead[i] == lowest
        elif len(counts) == 10:
            assert ahead[i].item() == pytest.approx(counts[0] + np.mean(counts) / (N + 1))


@pytest.mark.parametrize(
    "form",
    ["listed", *(pytest.param(one, marks=pytest.mark.slow) for one in ("classes", "one set"))],
)
def test_every_attack_measures_every_form(form: str) -> None:
    """End to end, on images, with ERS and Robust R@1."""
    budgets = [f"{name}:budget=12" for name in ("square", "nes", "qair", "oa-list")]
    others = {"transfer", "uap", *(text.partition(":")[0] for text in budgets)}  # no train split
    images = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    card = dml.from_arrays(images, [0, 0, 1, 1], steps=1).protocol
    dataset = ArrayDataset(own_card=card, data=made(form))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, D))
    every = [*sorted(set(ATTACKS.names()) - others), *budgets]
    report = dml.evaluate(net, dataset, attacks=every, progress=False)
    found = set(report.to_frame()["metric"])
    assert ("mAP-trapezoid" in found) == (form == "listed")
    assert ("NMI" in found) == (form != "listed")
    count = len(dataset.data.test)
    for name in ("CA+", "QA-", "TMA", "ERS"):
        assert report[name].n == count
    right = int((dataset.data.relevance().answers > 0).sum())
    assert (form == "listed") == (right < count)
    for name in ("R@1", "LTM", "Radius", "Square (budget=12)", "Top1", "Robust R@1"):
        assert report[name].n == right


@given(st.lists(st.tuples(st.sets(st.integers(0, 6)), st.sets(st.integers(0, 6))), min_size=1))
def test_two_lists_are_joined_to_one(pairs: list[tuple[set[int], set[int]]]) -> None:
    one, other = (Lists.of_queries([sorted(pair[k]) for pair in pairs]) for k in (0, 1))
    joined = one.joined(other)
    found = [[x for x in line if x >= 0] for line in joined.of(torch.arange(len(pairs))).tolist()]
    assert [sorted(line) for line in found] == [sorted(a | b) for a, b in pairs]
    assert joined.table.shape[1] == max(1, *(len(a | b) for a, b in pairs), 1)


def test_a_picture_shows_what_was_searched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Gallery items below a query; the queries of an attacked candidate, which the title names."""
    titles: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "_picture", lambda title, *_: titles.append(title) or b"")
        none = torch.zeros(1, 8, 8)
        asked = [AttackedQuery(2, none, none, (), (), {}, {}, item) for item in (None, 3)]
        pictures.draw("es", asked, made("classes"), tmp_path)
    assert titles == ["es on test image 2: ", "es on gallery image 3: "]
    data, shown = made("classes"), list[Any]()
    monkeypatch.setattr(pictures, "_show", lambda axis, image, title: shown.append(image))
    image = torch.zeros(1, 8, 8)
    query = AttackedQuery(0, image, image, (7, 2), (4,), {}, {})
    for one, retrieved in ((query, data.searched), (replace(query, candidate=3), data.test)):
        shown.clear()
        pictures._picture("", one, data)
        expected = retrieved.images[[7, 2, 4]].astype(np.float32) / 255
        assert np.array_equal(np.stack([shown[2], shown[3], shown[5]]), expected)


def test_another_network_embeds_both_parts() -> None:
    world = World("classes")
    images = [torch.rand(n, 1, 2, 2) for n in (N, Q)]
    gallery = replace(
        world.gallery, images=lambda i: images[0][i], query_images=lambda i: images[1][i]
    )

    def look(at: Callable[[torch.Tensor], torch.Tensor], count: int) -> torch.Tensor:
        return at(torch.arange(count)).flatten(1)

    found = gallery.as_embedded_by("E", look)
    assert torch.equal(found.embeddings, images[0].flatten(1))
    assert torch.equal(found.queries, images[1].flatten(1))
    assert found.relevance is gallery.relevance
    d = torch.cdist(found.queries, found.embeddings)
    for i in range(Q):
        nearest = min(world.sees[i], key=lambda n: float(d[i, n]))
        assert found.nearest(torch.tensor([i]), 1) == nearest
