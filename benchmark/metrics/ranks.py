"""Percentile ranks with half ties."""

from __future__ import annotations

from dmlbench.lazy import torch


def percentile_rank(closer: torch.Tensor, tied: torch.Tensor, others: int) -> torch.Tensor:
    """100 * (closer + tied / 2) / others, in [0, 100], float64.

    Half of the ties count, because a collapsed model (one embedding for every image) would
    otherwise be given rank 0 for free.

    Args:
        closer: how many other items are strictly closer than the item ranked.
        tied: how many other items are exactly as far.
        others: the number of other items, at least 1.

    >>> percentile_rank(torch.tensor(1), torch.tensor(2), 10).item()
    20.0
    """
    return 100 * (closer.double() + tied.double() / 2) / others
