"""R@K, mAP, mAP@R and mAP@10. A query is left out of its own ranking, and ties count half.

The j-th closest item of the class of the query has the rank

    rank_j = j + (other-class items that are closer) + (other-class items as far away) / 2

and from the ranks follow R@K = [rank_1 <= K], AP = mean_j j / rank_j,
AP@R = (1/R) sum_{rank_j <= R} j / rank_j with R = the number of other items of the
class (Musgrave et al., ECCV 2020), and AP@10 = (1/min(R, 10)) sum_{rank_j <= 10} j / rank_j.

Queries are processed in blocks, so there is never an N x N matrix, and the gallery is never sorted:
only the few distances to the class of the query are, and a binary search then finds the place of
each other-class item among them.
"""

from __future__ import annotations

from dataclasses import dataclass

from dmlbench.common.lazy import torch
from dmlbench.metrics.distance import Metric, pairwise
from dmlbench.metrics.ranks import TIE, tie_tolerance

BLOCK_CELLS = 8_000_000  # distances in memory at a time: 32 MB in float32


@dataclass(frozen=True)
class Retrieval:
    """Retrieval metrics of each query, in percent.

    Attributes:
        scores: name (``R@1``, ``mAP``, ...) -> (Q,) float64; NaN where ``valid`` is False.
        valid: (Q,) bool; False for a query whose class has no other member in the gallery.
            Such a query has no R@K and no AP, and means leave it out.
    """

    scores: dict[str, torch.Tensor]
    valid: torch.Tensor


def retrieval(
    queries: torch.Tensor,
    index: torch.Tensor,
    gallery: torch.Tensor,
    labels: torch.Tensor,
    metric: Metric,
    recalls: tuple[int, ...] = (1, 2),
) -> Retrieval:
    """Rank the gallery for each query and compute the retrieval metrics.

    Args:
        queries: (Q, D) embeddings, clean or adversarial.
        index: (Q,) position of each query in the gallery; this entry is left out of its ranking.
        gallery: (N, D) clean embeddings.
        labels: (N,) integer labels of the gallery.
        metric: N, E or C.
        recalls: the values of K in R@K.
    """
    names = [*(f"R@{k}" for k in recalls), "mAP", "mAP@R", "mAP@10"]
    columns: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    members = class_members(labels)
    block = max(1, BLOCK_CELLS // len(gallery))
    for rows in torch.split(torch.arange(len(queries), device=gallery.device), block):
        rank = _same_class_ranks(queries[rows], index[rows], gallery, labels, members, metric)
        for name, values in _scores(rank, recalls).items():
            columns[name].append(values)
    scores = {name: torch.cat(parts) for name, parts in columns.items()}
    return Retrieval(scores, ~scores["mAP"].isnan())


def class_members(labels: torch.Tensor) -> torch.Tensor:
    """List the gallery positions of each class: (largest label + 1, largest class size) int64.

    Rows of smaller classes are padded with -1.

    Args:
        labels: (N,) class of each gallery item.
    """
    count = int(labels.max()) + 1
    sizes = torch.bincount(labels, minlength=count)
    order = torch.argsort(labels, stable=True)
    column = torch.arange(len(labels), device=labels.device)
    column = column - (sizes.cumsum(0) - sizes)[labels[order]]
    members = labels.new_full((count, int(sizes.max())), -1)
    members[labels[order], column] = order
    return members


def _same_class_ranks(
    queries: torch.Tensor,
    index: torch.Tensor,
    gallery: torch.Tensor,
    labels: torch.Tensor,
    members: torch.Tensor,
    metric: Metric,
) -> torch.Tensor:
    """Compute the ranks (B, P) float64 of the same-class items, closest first, padded with inf.

    Squared distances give the same order as distances, and their rounding error has the same size
    everywhere, so one tolerance fits.
    """
    distance = pairwise(queries, gallery, metric)
    if metric != "C":
        distance.square_()
    tie = tie_tolerance(gallery)
    if metric != "C":
        tie = tie**2 / TIE
    same = members[labels[index]]
    absent = (same < 0) | (same == index[:, None])
    positive = distance.gather(1, same.clamp(min=0)).masked_fill_(absent, torch.inf)
    positive = positive.sort(dim=1).values.contiguous()
    # Only other-class items can worsen the rank of a positive: move the others behind all of them.
    distance.masked_fill_(labels[None, :] == labels[index][:, None], torch.inf)
    ahead = torch.zeros(positive.shape, dtype=torch.float64, device=gallery.device)
    for side, right in ((-tie, False), (tie, True)):  # a tie counts in one pass of two: half
        place = torch.searchsorted(positive, distance + side, right=right)
        ahead += _histogram(place, positive.shape[1]).cumsum(1) / 2
    j = torch.arange(1, positive.shape[1] + 1, device=gallery.device)
    return torch.where(positive.isinf(), torch.inf, j + ahead)


def _histogram(place: torch.Tensor, bins: int) -> torch.Tensor:
    """Count the values 0..bins-1 in each row of ``place`` (B, N): (B, bins) float64."""
    rows = torch.arange(len(place), device=place.device)[:, None] * (bins + 1)
    counts = torch.bincount((place + rows).flatten(), minlength=len(place) * (bins + 1))
    return counts.view(len(place), bins + 1)[:, :bins].double()


def _scores(rank: torch.Tensor, recalls: tuple[int, ...]) -> dict[str, torch.Tensor]:
    size = rank.isfinite().sum(1, keepdim=True)
    precision = torch.arange(1, rank.shape[1] + 1, device=rank.device) / rank
    scores = {f"R@{k}": (rank[:, 0] <= k).double() for k in recalls}
    scores["mAP"] = precision.sum(1) / size[:, 0]
    scores["mAP@R"] = (precision * (rank <= size)).sum(1) / size[:, 0]
    scores["mAP@10"] = (precision * (rank <= 10)).sum(1) / size[:, 0].clamp(max=10)
    alone = size[:, 0] == 0
    return {name: (100 * value).masked_fill(alone, torch.nan) for name, value in scores.items()}
