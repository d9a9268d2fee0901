"""FNA and ODFA against loops over single queries, in both suites."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dmlbench.attacks import furthest_negative
from dmlbench.attacks.base import ATTACKS, Gallery
from dmlbench.common.errors import CellError
from dmlbench.core.protocol import Threat
from dmlbench.metrics.distance import Metric
from dmlbench.testing.attack_subject import Subject
from tests.apart import FORMS, World, moved
from tests.twins import compare, make_gallery

THREAT = Threat(eps=0.1, alpha=0.03, steps=6)


def goal_of(name: str, g: Gallery, index: torch.Tensor, suite: str = "strict") -> Any:
    return ATTACKS.get(name)(suite=suite).resolve(THREAT).goal(g, index, seed=4)


@pytest.mark.parametrize("suite", ["strict", "ers"])
@pytest.mark.parametrize("metric", ["N", "E", "C"])
def test_fna_is_the_sum_over_the_class(
    metric: str, suite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(furthest_negative, "CHUNK", 17)  # the gallery spans several chunks
    monkeypatch.setattr(furthest_negative, "BLOCK", 13)  # some classes are larger, some smaller
    g, index = make_gallery(metric), torch.tensor([3, 0, 59, 17])
    labels = g.labels.clone()
    labels[:6] = 0  # classes of several sizes
    g = Gallery(g.embeddings, labels, g.metric)
    goal = goal_of("fna", g, index, suite)
    largest = int(torch.bincount(labels).max())
    start = g.embeddings[index] + 0.3 * torch.randn(4, 6).double()
    for row, own in enumerate(index.tolist()):
        x, q = start[row].clone().requires_grad_(), g.embeddings[own]
        others = [c for c in range(5) if c != labels[own]]
        means = [g.embeddings[labels == c].mean(0) for c in others]
        far = max(means, key=lambda mean: float((q - mean).norm()))
        guides = [g.embeddings[n] for n in range(60) if labels[n] == labels[own] and n != own]
        if suite == "ers":
            guides += [q] * (largest - len(guides))
        expected = (x - far).square().sum()
        for guide in guides:
            expected = expected - (x - guide).square().sum()
        compare(goal, start, row, expected, x, 1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_fna_of_other_forms_knows_the_answers_and_what_is_not_seen(form: str) -> None:
    world = World(form)
    e, goal = moved(world), goal_of("fna", world.gallery, world.index)
    loss = goal.value_and_grad(e, 0)[0]
    labels = world.gallery.classes.tolist()
    wanted = world.data.relevance().positives
    for i in world.index.tolist():
        groups: dict[int, list[int]] = {}
        for n, label in enumerate(labels):
            groups.setdefault(label, []).append(n)
        answers = {n for n in wanted.of(torch.tensor([i]))[0].tolist() if n >= 0}
        means = [world.x[ns].mean(0) for ns in groups.values() if not answers & set(ns)]
        far = max(means, key=lambda mean: float((world.q[i] - mean).norm()))
        expected = float((e[i] - far).square().sum())
        expected -= sum(float((e[i] - world.x[n]).square().sum()) for n in world.right[i])
        assert loss[i].item() == pytest.approx(expected)


def test_fna_needs_another_class() -> None:
    g = Gallery(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64), "E")
    with pytest.raises(CellError, match="a single class"):
        goal_of("fna", g, torch.arange(5))


@pytest.mark.parametrize("metric", ["N", "E", "C"])
def test_odfa_descends_the_distance_to_the_opposite(metric: str) -> None:
    """Its gradient has the direction of that of |f(q~) + f(q)|^2 wherever that has one."""
    g, index = make_gallery(metric), torch.tensor([3, 0, 59, 17])
    goal = goal_of("odfa", g, index)
    start = g.embeddings[index] + 0.3 * torch.randn(4, 6).double()
    loss, gradient = goal.value_and_grad(start, 1)
    for row, own in enumerate(index.tolist()):
        x, q = start[row].clone().requires_grad_(), g.embeddings[own]
        published = (x / x.norm() + q / q.norm()).square().sum()
        (slope,) = torch.autograd.grad(published, x)
        assert 4 - loss[row].item() ** 2 == pytest.approx(published.item())
        torch.testing.assert_close(gradient[row] / gradient[row].norm(), slope / slope.norm())


def test_odfa_starts_as_es_and_is_es_under_n() -> None:
    s = Subject(ATTACKS.get("odfa")())
    index = torch.arange(40)
    images = {
        name: ATTACKS.get(name)()
        .resolve(THREAT)
        .run(s.model, s.images, index, s.gallery, seed=0)
        .perturbed.images
        for name in ("odfa", "es")
    }
    apart = (images["odfa"] - images["es"]).abs() > 1e-6
    assert apart.float().mean() < 0.01  # rounding turns a sign here and there


@pytest.mark.parametrize("name", ["fna", "odfa"])
@pytest.mark.parametrize("metric", ["N", "E", "C"])
def test_they_spoil_the_ranking_and_leave_it_at_eps_0(name: str, metric: Metric) -> None:
    s = Subject(ATTACKS.get(name)())
    s.model.metric = metric  # type: ignore[assignment]
    labels, index = s.gallery.labels, torch.arange(40)
    with torch.no_grad():
        gallery = Gallery(s.model(s.images), labels, metric)
    for eps in (0.1, 0.0):
        attack = replace(s.component, eps=eps).resolve(THREAT)
        found = attack.run(s.model, s.images, index, gallery, seed=0)
        for column in (f"{name.upper()}:R@1", f"{name.upper()}:mAP"):
            after, before = (float(np.nanmean(x[column])) for x in (found.outcomes, found.clean))
            if eps == 0:
                assert after == pytest.approx(before)
            else:  # at E, where lengths differ, a direction may leave each top-1 as it is
                assert after < before or (metric == "E" and column.endswith("R@1"))
