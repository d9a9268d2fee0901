"""The three distances of deep metric learning, between embeddings.

``N``: Euclidean distance of L2-normalised embeddings, in [0, 2]; ``C``: 1 - cosine, in [0, 2];
``E``: Euclidean distance, not normalised. For N and C the embedding model has
already normalised its output (``dmlbench.compute.embedding``), so in this module C expects unit
vectors and N is computed as E is.
"""

from __future__ import annotations

import itertools
from math import inf
from typing import Literal, get_args

from dmlbench.common.lazy import torch

Metric = Literal["N", "E", "C"]
METRICS: tuple[Metric, ...] = get_args(Metric)
SLACK = 1e-4  # of the bounds of any number: float32 embeddings have unit length to about 1e-7
BOUNDS: dict[Metric, tuple[float, float]] = {"N": (0, 2), "E": (0, inf), "C": (0, 2)}
"""The least and the largest distance under each metric."""
SHORTEST = 1e-12  # what a shorter embedding is divided by, as by torch's normalize
PART = 1024  # embeddings that are squared at once


def pairwise(
    a: torch.Tensor, b: torch.Tensor, metric: Metric, norms: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute the distances (A, B) of every row of ``a`` (A, D) to every row of ``b`` (B, D).

    It takes one matrix product. Small distances lose precision, because large squares cancel:
    pass float64 if the difference between close neighbours matters.

    Args:
        a, b: the embeddings.
        metric: N, E or C.
        norms: (B,) ``squared_norms(b)``, where they are known; C does not need them.
    """
    if metric == "C":
        return 1 - a @ b.T
    norms = squared_norms(b) if norms is None else norms
    squared = torch.addmm(norms, a, b.T, alpha=-2) + squared_norms(a)[:, None]
    return squared.clamp_(min=0).sqrt_()


def squared_norms(e: torch.Tensor) -> torch.Tensor:
    """Compute the squared lengths (N,) of the rows of ``e`` (N, D), without a copy of ``e``.

    The rows are squared a part at a time. No part is short, because a sum over few rows may be
    taken in another order: the results are the bits of ``e.square().sum(1)``.
    """
    norms = e.new_empty(len(e))
    cuts = [0, *range(PART, len(e) - PART + 1, PART), len(e)]
    for first, last in itertools.pairwise(cuts):
        norms[first:last] = e[first:last].square().sum(1)
    return norms


def rowwise(a: torch.Tensor, b: torch.Tensor, metric: Metric) -> torch.Tensor:
    """Compute the distances between ``a`` and ``b`` (..., D), with broadcasting; returns (...).

    N and E are the norm of the difference, which is exact near zero. Its gradient at zero is zero.
    """
    if metric == "C":
        return 1 - (a * b).sum(-1)
    distance: torch.Tensor = torch.linalg.vector_norm(a - b, dim=-1)
    return distance


def rowwise_gradient(a: torch.Tensor, b: torch.Tensor, metric: Metric) -> torch.Tensor:
    """Compute the gradient of ``rowwise`` with respect to ``a``, (..., D).

    It is -b for C, and else the unit vector from b to a (zero where a = b).
    """
    if metric == "C":
        return -b + torch.zeros_like(a)
    difference = a - b
    norm = torch.linalg.vector_norm(difference, dim=-1, keepdim=True)
    gradient: torch.Tensor = torch.where(norm > 0, difference / norm, 0)
    return gradient
