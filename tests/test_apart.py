"""Queries and gallery apart: every number against an explicit loop over the queries.

A tiny made set in three forms: classes with distractors and sources that hide gallery items, lists
of answers with junk, and one set of images whose sources hide more than the query itself.
"""

from __future__ import annotations

import itertools
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import dmlbench as dml
from dmlbench.attacks.base import ATTACKS, Gallery
from dmlbench.common.errors import UserError
from dmlbench.core import spec
from dmlbench.core.protocol import Threat
from dmlbench.datasets.arrays import ArrayDataset
from dmlbench.datasets.base import DATASETS, RetrievalData
from dmlbench.evaluation import pictures
from dmlbench.evaluation.attacked_queries import AttackedQuery
from dmlbench.metrics.collapse import chance_recall
from dmlbench.metrics.relevance import Lists
from dmlbench.metrics.retrieval import retrieval
from dmlbench.testing import make_split
from tests.test_retrieval import slow_metrics

Run = Callable[..., "subprocess.CompletedProcess[str]"]
N, Q, D = 23, 9, 5
VIT = "timm:name=vit_tiny_patch16_224,weights=none"


def made(form: str) -> RetrievalData:
    """The tiny set; pixels do not matter here."""
    draw = np.random.default_rng(3)
    pixels = [draw.integers(0, 256, (n, 1, 8, 8)).astype(np.uint8) for n in (Q, N)]
    labels = [np.arange(n) % 3 for n in (Q, N)]
    if form == "one set":
        whole = dml.from_arrays(pixels[1], labels[1]).load(None)
        object.__setattr__(whole.test, "sources", np.arange(N) // 2 - (np.arange(N) < 2))
        return whole
    if form == "listed":
        positives = [sorted({i, (3 * i) % N, 20 - i}) for i in range(Q - 1)] + [[]]
        junk = [[(i + 11) % N, (3 * i) % N] for i in range(Q)]
        none = [[None] * n for n in (Q, N)]
        with pytest.warns(UserWarning, match="1 of 9 queries have no answer"):
            found = dml.from_arrays(
                pixels[0], none[0], gallery=(pixels[1], none[1]), positives=positives, junk=junk
            )
        return found.load(None)
    named = [labels[0].tolist(), [None if i % 5 == 4 else int(x) for i, x in enumerate(labels[1])]]
    sources = [[i % 4 for i in range(Q)], [i % 7 for i in range(N)]]  # 0 to 3 hide three or four
    return dml.from_arrays(
        pixels[0], named[0], gallery=(pixels[1], named[1]), sources=(sources[0], sources[1])
    ).load(None)


class World:
    """The set as plain lists: what each query sees, and what answers it."""

    def __init__(self, form: str, metric: str = "E") -> None:
        self.data = data = made(form)
        generator = torch.Generator().manual_seed(1)
        raw = torch.randn(N + Q, D, generator=generator, dtype=torch.float64)
        raw = torch.nn.functional.normalize(raw, dim=1) if metric != "E" else raw
        self.x, self.q = raw[:N], raw[:N] if data.gallery is None else raw[N:]
        items, queries = data.searched, data.test
        self.sees, self.right = [], []
        for i in range(len(queries)):
            hidden = set() if data.gallery is not None else {i}
            if data.answers is not None:
                hidden |= set(data.answers.junk[i])
            if queries.sources is not None and items.sources is not None:
                own = queries.sources[i]
                hidden |= {n for n in range(N) if own >= 0 and items.sources[n] == own}
            self.sees.append([n for n in range(N) if n not in hidden])
            if data.answers is not None:
                wanted = set(data.answers.positives[i])
            else:
                wanted = {n for n in range(N) if 0 <= items.labels[n] == queries.labels[i]}
            self.right.append([n for n in self.sees[i] if n in wanted])
        self.gallery = Gallery(
            self.x,
            torch.from_numpy(items.labels),
            metric,  # type: ignore[arg-type]
            queries=self.q if data.gallery is not None else None,  # type: ignore[arg-type]
            relevance=data.relevance(),
            apart=data.gallery is not None,
        )
        self.index = torch.arange(len(queries))

    def d(self, e: torch.Tensor, n: int) -> float:
        """Distance of an embedding to a gallery item."""
        x = self.x[n]
        return float(1 - e @ x if self.gallery.metric == "C" else (e - x).norm())

    def wrong(self, i: int) -> list[int]:
        """What a query sees and is no answer."""
        return [n for n in self.sees[i] if n not in self.right[i]]


FORMS = ("classes", "listed", "one set")


@pytest.fixture(params=list(itertools.product(FORMS, ("N", "E", "C"))), ids=str)
def world(request: pytest.FixtureRequest) -> World:
    return World(*request.param)


def moved(world: World) -> torch.Tensor:
    noise = torch.randn(world.q.shape, generator=torch.Generator().manual_seed(2)).double()
    e = world.q + 0.3 * noise
    return e if world.gallery.metric == "E" else torch.nn.functional.normalize(e, dim=1)


def goal_of(world: World, name: str, suite: str = "strict") -> Any:
    attack = spec.parse(name, ATTACKS).resolve(Threat(0.1, 0.02, 2, suite, 2))
    return attack.goal(world.gallery, world.index, seed=0)


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
    "form", ["classes", "listed", pytest.param("one set", marks=pytest.mark.slow)]
)
def test_every_attack_measures_every_form(form: str) -> None:
    """End to end, on images, with ERS and Robust R@1."""
    budgets = [f"{name}:budget=12" for name in ("square", "nes", "qair", "oa-list")]
    others = {"transfer", "uap", *(text.partition(":")[0] for text in budgets)}  # no train split
    card = dml.from_arrays(np.zeros((4, 8, 8), np.uint8), [0, 0, 1, 1], steps=1).protocol
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


def test_a_picture_shows_what_was_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gallery items below a query; the queries of an attacked candidate."""
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


def test_only_a_set_that_gives_them_has_another_digest() -> None:
    images = make_split(0)
    plain = dml.from_arrays(images.images, images.labels).load(None)
    split = (images.images[:20], images.labels[:20])

    def base(**keys: Any) -> str:
        queries = (images.images[20:], images.labels[20:] % 3)
        return dml.from_arrays(*queries, gallery=split, **keys).load(None).digest

    every = [[0]] * 20
    digests = {
        plain.digest,
        base(),
        base(sources=(range(20), range(20))),
        base(positives=every),
        base(positives=every, junk=[[1]] * 20),
    }
    assert len(digests) == 5
    assert "query" not in str(spec.values(spec.parse("folder:root=x", DATASETS)))


def test_from_arrays_refuses_what_makes_no_sense() -> None:
    images, labels = make_split(0).images, make_split(0).labels
    gallery = (images[:20], labels[:20])
    for keys, said in (
        ({"gallery": (images[:0], [])}, "must be"),
        ({"gallery": (images[:5], ["z"] * 5)}, "no query has an answer"),
        ({"gallery": (images[:20], None)}, "20 gallery images need as many labels, got 0"),
        ({"train": (images, [None, *labels[1:]])}, "1 of 40 train images have the label None"),
        ({"labels": [None, *labels[1:]]}, "1 of 40 images have the label None, which only a g"),
        ({"gallery": gallery, "positives": [[0]]}, "need as many lists"),
        ({"gallery": gallery, "positives": [[20]] * 40}, "not in the gallery"),
        ({"gallery": gallery, "sources": ([1], [2])}, "as many sources"),
        ({"positives": [[0]]}, "go with a gallery"),
    ):
        with pytest.raises(UserError, match=said):
            dml.from_arrays(**{"images": images, "labels": labels} | keys)  # type: ignore[arg-type]


def test_labels_may_be_none_where_none_is_read() -> None:
    """Lists of answers stand in their place; a query of no class has no answer."""
    images, others = make_split(0).images, make_split(1).images[:20]
    every = [[n % 20] for n in range(40)]
    found = [
        dml.from_arrays(images, one, gallery=(others, other), positives=every).load(None)
        for one, other in ((None, None), ([None] * 40, [None] * 20), (range(40), range(20)))
    ]
    assert len({one.digest for one in found}) == 1
    with pytest.warns(UserWarning, match="39 of 40 queries have no answer"):
        data = dml.from_arrays(images, [0] + [None] * 39, gallery=(others, [0] + [None] * 19))
    assert data.load(None).test.labels.tolist() == [0] + [-1] * 39


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Class folders ``q/a``, ``q/b``, ``g/a``, ``g/b``, and a distractor in ``g``."""
    draw = np.random.default_rng(0)
    for name in ("q/a/1", "q/a/2", "q/b/3", "g/a/4", "g/b/5", "g/b/6", "g/7"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (36, 36, 3), np.uint8)).save(path)
    return tmp_path


def test_folders(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    text = "folder:query=q,gallery=g,size=32"
    data = spec.parse(text, DATASETS).load(None)
    assert data.test.labels.tolist() == [0, 0, 1]
    assert data.searched.labels.tolist() == [0, 1, 1, -1]
    (tree / "p.txt").write_text(
        "easy a/1.png a/4.png\nhard a/1.png 7.png\njunk a/2.png a/4.png\n"
        "positive a/2.png b/5.png\npositive b/3.png b/6.png\n"
    )
    listed = spec.parse(f"{text},positives=p.txt,level=hard", DATASETS).load(None)
    assert listed.answers is not None
    assert [len(one) for one in listed.answers.positives] == [1, 1, 1]
    assert [len(one) for one in listed.answers.junk] == [1, 1, 0]
    (tree / "s.txt").write_text(
        "x a/1.png\nx a/4.png\ny a/2.png\nz b/3.png\nw b/5.png\nw b/6.png\nw 7.png\n"
    )
    with pytest.warns(UserWarning, match="1 of 3 queries have no answer"):
        sourced = spec.parse(f"{text},sources=s.txt", DATASETS).load(None)
    assert sourced.relevance().excluded.lengths.tolist() == [1, 0, 0]
    (tree / "g/b/same.png").write_bytes((tree / "q/a/1.png").read_bytes())
    with pytest.warns(UserWarning, match="1 images are both query and gallery image"):
        spec.parse(text, DATASETS).load(None)


def test_a_name_in_both_folders_says_which_is_meant(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Query and gallery may both have an ``a/1.png``: two images, each with a source of its own."""
    monkeypatch.chdir(tree)
    (tree / "g/a/1.png").write_bytes((tree / "q/a/1.png").read_bytes())
    text = "folder:query=q,gallery=g,size=32,sources=s.txt"
    rest = "y a/2.png\nz b/3.png\nx a/4.png\nw b/5.png\nw b/6.png\nw gallery/7.png\n"
    for lines, said in (
        ("x a/1.png\n", "line 1: a/1.png is the name of two images: write query/a/1.png or gall"),
        ("x query/a/1.png\n", "no source for 1 images: gallery/a/1.png"),
        ("x gallery/a/1.png\nx query/a/1.png\nv a/2.png\n", "line 4: a/2.png has the source y, "),
    ):
        (tree / "s.txt").write_text(lines + rest)
        with pytest.raises(UserError, match=said):
            spec.parse(text, DATASETS).load(None)
    (tree / "s.txt").write_text("x query/a/1.png\nx gallery/a/1.png\n" + rest)
    with warnings.catch_warnings(record=True) as said_of:
        warnings.simplefilter("always")
        same = spec.parse(text, DATASETS).load(None)
    assert same.relevance().excluded.lengths.tolist() == [2, 0, 0]
    assert not any("finds itself" in str(one.message) for one in said_of)  # it is hidden from it
    (tree / "s.txt").write_text("x query/a/1.png\nv gallery/a/1.png\n" + rest)
    with pytest.warns(UserWarning, match="1 images are both query and gallery image"):
        assert spec.parse(text, DATASETS).load(None).relevance().excluded.lengths[0] == 1


def test_no_query_and_no_gallery_image_trains(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they lie below the root, and however their folders are spelt."""
    monkeypatch.chdir(tree)
    for name in ("t/1", "t/2", "u/test/q/a/1", "u/test/g/a/2", "u/3"):
        path = tree / "set" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((tree / "g" / "7.png").read_bytes())
    (tree / "link").symlink_to(tree / "set" / "u")
    for query, gallery in (
        ("set/u/test/q", "set/u/test/g"),
        ("q/../set/u/test/q", "link/test/g"),
    ):
        chosen = spec.parse(f"folder:root=set,query={query},gallery={gallery}", DATASETS)
        listing = chosen.found(None)  # type: ignore[attr-defined]
        assert [Path(name).name for name, _ in listing.train] == ["1.png", "2.png", "3.png"]


def test_bad_folders_are_one_line_each(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    (tree / "empty").mkdir()
    for number, line in enumerate(
        ["easy a/1.png no.png", "easy no.png a/4.png", "odd a/1.png a/4.png", "easy a/1.png"]
    ):
        (tree / f"p{number}.txt").write_text(line + "\n")
    (tree / "p4.txt").write_text("easy a/1.png a/4.png\n")
    (tree / "s.txt").write_text("x a/1.png\n")
    for keys, said in (
        ("gallery=empty", "has no image file in it"),
        ("gallery=none", "is not a folder"),
        ("gallery=g,positives=p0.txt", "no.png is not among the gallery images"),
        ("gallery=g,positives=p1.txt", "no.png is not among the query images"),
        ("gallery=g,positives=p2.txt", "the grade 'odd' is none of"),
        ("gallery=g,positives=p3.txt", "expected 'GRADE QUERY ITEM'"),
        ("gallery=g,positives=p4.txt", "has no line for 2 queries"),
        ("gallery=g,positives=none.txt", "none.txt cannot be read"),
        ("gallery=g,sources=s.txt", "has no source for 6 images"),
    ):
        with pytest.raises(UserError, match=said) as raised:
            spec.parse(f"folder:query=q,{keys},size=32", DATASETS).load(None)
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="go together"):
        spec.parse("folder:query=q", DATASETS)


@pytest.mark.parametrize(
    ("keys", "model", "said"),
    [
        ("query=q,gallery=empty", "c2f2", "gallery empty has no image file in it"),
        ("query=empty,gallery=empty", "c2f2", "query empty has no image file in it"),
        ("query=q", "c2f2", "query and gallery go together"),
        ("query=q,gallery=g,positives=gone.txt", "c2f2", "p/gone.png is not among the gallery"),
        ("query=q,gallery=g,positives=odd.txt", "c2f2", "odd.txt, line 3: the grade 'odd' is none"),
        ("query=q,gallery=g,positives=short.txt", "c2f2", "line 2: expected 'GRADE QUERY ITEM'"),
        ("query=q,gallery=g,positives=few.txt", "c2f2", "no line for 2 queries: a/2.png, b/3.png"),
        ("query=q,gallery=other", "c2f2", "no query has an answer in the gallery"),
        ("query=q,gallery=g", VIT, "takes 224x224 images and the data set gives 32x32"),
    ],
)
def test_mistakes_on_the_command_line(
    dmlbench: Run, tree: Path, keys: str, model: str, said: str
) -> None:
    """One line that says what is wrong, exit code 2, and nothing is stored."""
    (tree / "empty").mkdir()
    (tree / "other" / "c").mkdir(parents=True)
    (tree / "other" / "c" / "7.png").write_bytes((tree / "g" / "7.png").read_bytes())
    for name, lines in (
        ("gone", "easy a/1.png p/gone.png"),
        ("odd", "easy a/1.png a/4.png\n\nodd a/1.png a/4.png"),
        ("short", "easy a/1.png a/4.png\neasy a/2.png"),
        ("few", "easy a/1.png a/4.png"),
    ):
        (tree / f"{name}.txt").write_text(lines + "\n")
    asked = ("attack", "--attack", "es", "--cache", "cache", "--model", model)
    done = dmlbench(*asked, "--dataset", f"folder:size=32,{keys}")
    *before, last = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert last.startswith("error: ")
    assert said in last
    assert all(line.startswith("decode folder") or "plugin" in line for line in before)
    assert not list(tree.rglob("*.json"))


def test_an_image_in_both_parts_is_warned_of_on_the_command_line(dmlbench: Run, tree: Path) -> None:
    (tree / "g" / "b" / "same.png").write_bytes((tree / "q" / "a" / "1.png").read_bytes())
    asked = ("attack", "--attack", "es:steps=1", "--cache", "cache", "--model", "c2f2")
    done = dmlbench(*asked, "--threads", "1", "--dataset", "folder:size=32,query=q,gallery=g")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "both query and gallery" in line]
    assert line.startswith("warning: folder: 1 images are both")
