"""Signs of a collapsed embedding space, in which all images have nearly the same embedding.

A constant embedding has an ERS of 40, above nearly every published defense on CUB. Each row of a
table therefore says if its model has collapsed, which is: it retrieves no better than chance, or
its embeddings are so close together that float32 hardly tells them apart. Small differences may
still retrieve (R@1 76.8 at a mean cosine of 0.998 was measured); much smaller ones are rounded
away.
"""

from __future__ import annotations

from dmlbench.common.lazy import torch
from dmlbench.metrics.relevance import Relevance

MEAN_COSINE_LIMIT = 0.99  # above it a training is warned of a collapse
UNRESOLVED = 0.999  # above it distances between neighbours approach the rounding error of float32
CHANCE_MARGIN = 2.0  # percentage points of R@1
PART = 16_384  # embeddings that are converted to float64 at once


def mean_cosine(embeddings: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Compute the mean cosine similarity of all pairs of rows of ``embeddings`` (N, D), N >= 2.

    A row is not paired with itself. The result is a scalar in [-1, 1], in the precision of
    ``embeddings``, or of ``dtype``: take float64 where N is large.
    """
    n = len(embeddings)
    total = embeddings.new_zeros(embeddings.shape[1], dtype=dtype)
    squares = total.new_zeros(())
    for part in torch.split(embeddings, PART):
        unit = torch.nn.functional.normalize(part.to(dtype or part.dtype), dim=1)
        total, squares = total + unit.sum(0), squares + unit.square().sum()
    return (total.square().sum() - squares) / (n * (n - 1))


def effective_rank(embeddings: torch.Tensor) -> float:
    """Compute the effective rank of ``embeddings`` (N, D), in [0, D].

    It is exp(H(p)), where p are the singular values divided by their sum and H is the entropy
    (Roy and Vetterli, "The effective rank", EUSIPCO 2007). Of more than ``PART`` embeddings they
    are the roots of the eigenvalues of E^T E (D, D), which is summed up a part at a time.
    """
    if len(embeddings) <= PART:
        values = torch.linalg.svdvals(embeddings.double())
    else:
        parts = (part.double() for part in torch.split(embeddings, PART))
        values = torch.linalg.eigvalsh(sum(part.T @ part for part in parts)).clamp(min=0).sqrt()
    if not values.any():
        return 0.0  # every embedding is zero
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


def chance_recall(relevance: Relevance, items: int) -> float:
    """Compute the expected R@1, in percent, of a random ranking.

    Queries without a positive do not count.

    Args:
        relevance: the positives of each query, and what it never sees.
        items: number of gallery items.
    """
    answers, seen = relevance.answers.double(), items - relevance.excluded.lengths
    return float(100 * (answers / seen)[answers > 0].mean())


def is_collapsed(recall_at_1: float, chance: float, mean_cosine: float) -> bool:
    """Return True if R@1 is at most 2 points above chance, or the mean cosine is above 0.999.

    Args:
        recall_at_1: R@1 on clean images, in percent.
        chance: R@1 of a random ranking, in percent (``chance_recall``).
        mean_cosine: mean cosine similarity of all pairs of clean embeddings.
    """
    return recall_at_1 <= chance + CHANCE_MARGIN or mean_cosine > UNRESOLVED
