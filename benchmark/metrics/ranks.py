"""Percentile ranks, in which half of the tied items count."""

from __future__ import annotations

from dmlbench.common.lazy import torch

TIE = 1e-6  # relative to the largest norm: float32 cannot resolve smaller differences


def tie_tolerance(embeddings: torch.Tensor) -> float:
    """Compute the difference below which two distances between ``embeddings`` (N, D) are tied.

    Two equal embeddings can differ in their last bits, as those of a collapsed model or of
    duplicate images do.
    """
    return TIE * float(torch.linalg.vector_norm(embeddings, dim=1).max().clamp(min=TIE))


def percentile_rank(
    closer: torch.Tensor, tied: torch.Tensor, others: int | torch.Tensor
) -> torch.Tensor:
    """Compute 100 * (closer + tied / 2) / others, in [0, 100], float64.

    Half of the ties count. Otherwise a collapsed model, which has the same embedding for every
    image, would always get the rank 0.

    Args:
        closer: number of other items that are strictly closer than the ranked item.
        tied: number of other items at the same distance (to within ``tie_tolerance``).
        others: the number of other items, at least 1; a tensor where it differs from list to list.

    >>> percentile_rank(torch.tensor(1), torch.tensor(2), 10).item()
    20.0
    """
    return 100 * (closer.double() + tied.double() / 2) / others
