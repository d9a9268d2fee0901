"""The three metrics of deep metric learning, over embeddings.

``N``: Euclidean distance of L2-normalised embeddings, in [0, 2]; ``C``: 1 - cosine, in [0, 2];
``E``: Euclidean distance, not normalised. The embedding model normalises for N and C
(``dmlbench.compute.embedding``), so here C reads unit vectors and N is computed like E.
"""

from __future__ import annotations

from math import inf
from typing import Literal, get_args

from dmlbench.common.lazy import torch

Metric = Literal["N", "E", "C"]
METRICS: tuple[Metric, ...] = get_args(Metric)
BOUNDS: dict[Metric, tuple[float, float]] = {"N": (0, 2), "E": (0, inf), "C": (0, 2)}
"""The least and the largest distance under each metric."""


def pairwise(a: torch.Tensor, b: torch.Tensor, metric: Metric) -> torch.Tensor:
    """Distances (A, B) of every row of ``a`` (A, D) to every row of ``b`` (B, D).

    One matrix product. Squared distances cancel where they are small, so pass float64 where
    the difference between close neighbours matters.
    """
    if metric == "C":
        return 1 - a @ b.T
    squared = torch.addmm(b.square().sum(1), a, b.T, alpha=-2) + a.square().sum(1, keepdim=True)
    return squared.clamp_(min=0).sqrt_()


def rowwise(a: torch.Tensor, b: torch.Tensor, metric: Metric) -> torch.Tensor:
    """Distances between ``a`` and ``b`` (..., D), broadcast over the leading dimensions.

    The norm of the difference, exact near zero; its gradient at zero is zero.
    """
    if metric == "C":
        return 1 - (a * b).sum(-1)
    distance: torch.Tensor = torch.linalg.vector_norm(a - b, dim=-1)
    return distance


def rowwise_gradient(a: torch.Tensor, b: torch.Tensor, metric: Metric) -> torch.Tensor:
    """Gradient of ``rowwise`` in ``a``, (..., D): -b for C, else the unit vector from b to a."""
    if metric == "C":
        return -b + torch.zeros_like(a)
    difference = a - b
    norm = torch.linalg.vector_norm(difference, dim=-1, keepdim=True)
    gradient: torch.Tensor = torch.where(norm > 0, difference / norm, 0)
    return gradient
