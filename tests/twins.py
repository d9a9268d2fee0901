"""Explicit loops over the definitions of the attacks: ranks, losses and their gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dmlbench.attacks.base import ATTACKS, Attack, Gallery
from dmlbench.core.protocol import Threat

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
