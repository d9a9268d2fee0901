"""Explicit loops over the definitions of metrics and attacks: ranks, losses and gradients."""

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


def slow_metrics(positives: list[float], negatives: list[float]) -> dict[str, float] | None:
    """The metrics of a query from the sorted distances to its answers, and those to the rest."""
    if not positives:
        return None
    ranks = []
    for j, d in enumerate(positives, start=1):
        ranks.append(j + sum(n < d for n in negatives) + sum(n == d for n in negatives) / 2)
    r = len(positives)
    precision = [j / rank for j, rank in enumerate(ranks, start=1)]
    area = 0.0  # as revisitop's compute_ap, whose ranks and j begin at 0
    for j, rank in enumerate(ranks):
        left = 1.0 if rank == 1 else j / (rank - 1)
        area += (left + (j + 1) / rank) / 2 / r
    return {
        "R@1": 100.0 * (ranks[0] <= 1),
        "R@2": 100.0 * (ranks[0] <= 2),
        "mAP": 100 * sum(precision) / r,
        "mAP@R": 100 * sum(p for p, rank in zip(precision, ranks, strict=True) if rank <= r) / r,
        "mAP@10": 100
        * sum(p for p, rank in zip(precision, ranks, strict=True) if rank <= 10)
        / min(r, 10),
        "mAP-trapezoid": 100 * area,
    }


def compare(
    goal: Any, e: torch.Tensor, row: int, expected: torch.Tensor, x: torch.Tensor, tolerance: float
) -> None:
    loss, gradient = goal.value_and_grad(e, 1)
    (slope,) = torch.autograd.grad(expected, x)
    assert loss[row].item() == pytest.approx(expected.item(), rel=5 * tolerance, abs=tolerance)
    assert (gradient[row] - slope).norm() <= 2 * tolerance * max(1.0, slope.norm().item())
