"""Percentile ranks with half ties."""

from __future__ import annotations

from dmlbench.common.lazy import torch

TIE = 1e-6  # relative to the embeddings' scale: closer distances float32 cannot tell apart


def tie_tolerance(embeddings: torch.Tensor) -> float:
    """Distances among ``embeddings`` (N, D) that differ by less than this count as tied.

    A collapsed model's embeddings agree to the last bits only, and so do duplicate images'.
    """
    return TIE * float(torch.linalg.vector_norm(embeddings, dim=1).max().clamp(min=TIE))


def percentile_rank(closer: torch.Tensor, tied: torch.Tensor, others: int) -> torch.Tensor:
    """100 * (closer + tied / 2) / others, in [0, 100], float64.

    Half of the ties count, because a collapsed model (one embedding for every image) would
    otherwise be given rank 0 for free.

    Args:
        closer: how many other items are strictly closer than the item ranked.
        tied: how many other items are as far (to within ``tie_tolerance``).
        others: the number of other items, at least 1.

    >>> percentile_rank(torch.tensor(1), torch.tensor(2), 10).item()
    20.0
    """
    return 100 * (closer.double() + tied.double() / 2) / others
