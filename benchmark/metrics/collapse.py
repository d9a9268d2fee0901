"""Indicators of a collapsed embedding space.

A constant embedding scores an ERS near 45, above every published defense on CUB, so each row
says whether its model still retrieves anything.
"""

from __future__ import annotations

from dmlbench.common.lazy import torch

MEAN_COSINE_LIMIT = 0.99
CHANCE_MARGIN = 2.0  # points of R@1


def mean_cosine(embeddings: torch.Tensor) -> torch.Tensor:
    """Mean cosine similarity of all pairs of different rows of ``embeddings`` (N, D), N >= 2.

    A scalar in the precision of ``embeddings``: pass float64 where N is large.
    """
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    n = len(unit)
    return (unit.sum(0).square().sum() - unit.square().sum()) / (n * (n - 1))


def effective_rank(embeddings: torch.Tensor) -> float:
    """Exponential of the entropy of the normalised singular values of (N, D), in [0, D].

    Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    values = torch.linalg.svdvals(embeddings.double())
    if not values.any():
        return 0.0  # every embedding is zero
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


def chance_recall(labels: torch.Tensor) -> float:
    """R@1 in percent of a random ranking of the other items, over queries that have a positive."""
    sizes = torch.bincount(labels)[labels].double() - 1
    return float(100 * (sizes[sizes > 0] / (len(labels) - 1)).mean())


def is_collapsed(recall_at_1: float, chance: float, cosine: float) -> bool:
    """R@1 within 2 points of chance, or a mean cosine above 0.99."""
    return recall_at_1 <= chance + CHANCE_MARGIN or cosine > MEAN_COSINE_LIMIT
