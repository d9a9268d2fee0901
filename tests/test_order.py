"""OA against loops over pairs, and what the paper's table says of it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from dmlbench.attacks.base import ATTACKS, Gallery
from dmlbench.attacks.order import kendall_tau
from dmlbench.common.errors import CellError
from dmlbench.core.protocol import Threat
from tests.twins import compare, distance, make_gallery, slow_qa

THREAT = Threat(eps=0.1, alpha=0.03, steps=6)


def goal_of(g: Gallery, index: torch.Tensor, **fields: Any) -> Any:
    return ATTACKS.get("oa")(**fields).resolve(THREAT).goal(g, index, seed=4)


def slow_tau(places: list[int]) -> float:
    """Of the places that items have which should come in this order."""
    pairs = list(itertools.combinations(places, 2))
    return sum(1 if a < b else -1 if a > b else 0 for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("metric", ["N", "E", "C"])
@pytest.mark.parametrize("k", [2, 5, 10])
def test_it_is_the_papers_loss(k: int, metric: str) -> None:
    g, index = make_gallery(metric), torch.tensor([3, 0, 59, 17])
    goal = goal_of(g, index, k=k, xi=7.0)
    start = g.embeddings[index] + 0.3 * torch.randn(4, 6).double()
    for row, own in enumerate(index.tolist()):
        x = start[row].clone().requires_grad_()
        wanted = goal.kept.candidates[row].tolist()
        clean = [distance(g.embeddings[own], y, metric).item() for y in g.embeddings]
        nearest = sorted(set(range(60)) - {own}, key=clean.__getitem__)[:k]
        assert sorted(wanted) == sorted(nearest)
        d = [distance(x, g.embeddings[n], metric) for n in wanted]
        pairs = [(a - b).clamp(min=0) for a, b in itertools.combinations(d, 2)]
        expected = torch.stack(pairs).sum() / k**2 + 7 * slow_qa(x, own, wanted, g, True, "strict")
        compare(goal, start, row, expected, x, 1e-9)
        found = goal.outcome(start)
        returned = [distance(x, y, metric).item() for y in g.embeddings]
        order = sorted(set(range(60)) - {own}, key=returned.__getitem__)
        places = [order.index(n) for n in wanted]
        assert found["OA"][row].item() == pytest.approx(slow_tau(places))
        assert found["OA:mR"][row].item() == pytest.approx(sum(places) / k)


def test_orders_are_drawn_for_each_query_alike_for_every_k() -> None:
    g = make_gallery("N")
    every = goal_of(g, torch.arange(60), k=5)
    assert torch.equal(
        goal_of(g, torch.tensor([7, 2]), k=5).kept.candidates, every.kept.candidates[[7, 2]]
    )
    clean = every.outcome(g.embeddings)
    assert (clean["OA:mR"] == 2).all()  # (k - 1) / 2, as in the paper's table
    assert clean["OA"].mean().abs() < 0.2  # 60 draws of standard deviation 0.41
    assert len(clean["OA"].unique()) > 5


def test_a_collapsed_model_has_no_order() -> None:
    g = Gallery(torch.ones(30, 4) / 2, torch.arange(30) % 3, "N")
    found = goal_of(g, torch.arange(30)).outcome(g.embeddings)
    assert (found["OA"] == 0).all()
    assert (found["OA:mR"] == 14).all()  # the middle of the 29 others


def test_tau_is_that_of_the_permutation() -> None:
    for places in itertools.permutations(range(4)):
        d = torch.tensor([places], dtype=torch.float64)
        assert kendall_tau(d, 1e-9).item() == pytest.approx(slow_tau(list(places)))
    assert kendall_tau(torch.tensor([[1.0, 1.0, 2.0]]), 1e-6).item() == pytest.approx(2 / 3)


def test_a_gallery_of_fewer_items_is_refused() -> None:
    with pytest.raises(CellError, match="nearest 60 others do not exist"):
        goal_of(make_gallery("N"), torch.arange(3), k=60)
