"""R@K, mAP, mAP@R, mAP@10 and the landmark benchmarks' mAP. Ties count half.

Items that a query never sees (``Relevance.excluded``, such as the query itself) are in no ranking.
The j-th closest of the R positives of a query, the other items of its class, has the rank

    rank_j = j + (other items that are closer) + (other items as far away) / 2

and from the ranks follow R@K = [rank_1 <= K], AP = mean_j j / rank_j,
AP@R = (1/R) sum_{rank_j <= R} j / rank_j (Musgrave et al., ECCV 2020), and
AP@10 = (1/min(R, 10)) sum_{rank_j <= 10} j / rank_j.

The published code of (revisited) Oxford and Paris takes the area under precision and recall by
trapezoids instead, which is mAP-trapezoid:

    AP = mean_j ((j - 1) / (rank_j - 1) + j / rank_j) / 2,    where 0 / 0 is 1

Of the metrics N and E squared distances are compared, in float32, and two are as far away if they
differ by less than 1e-6 of the squared length of the longest embedding, about what float32 leaves
of them. In a model whose neighbours are closer than a thousandth of that length most items are
tied: such models are called collapsed (``collapse``).

Queries are processed in blocks, so there is never a Q x N matrix, and the gallery is never sorted:
only the few distances to the positives are, and a binary search then finds the place of each other
item among them.
"""

from __future__ import annotations

from dataclasses import dataclass

from dmlbench.common.lazy import torch
from dmlbench.metrics.distance import Metric, pairwise, squared_norms
from dmlbench.metrics.names import TRAPEZOID
from dmlbench.metrics.ranks import TIE, tie_tolerance
from dmlbench.metrics.relevance import Relevance

BLOCK_CELLS = 8_000_000  # distances in memory at a time: 32 MB in float32


@dataclass(frozen=True)
class Retrieval:
    """Retrieval metrics of each query, in percent.

    Attributes:
        scores: name (``R@1``, ``mAP``, ...) -> (Q,) float64; NaN where ``valid`` is False.
        valid: (Q,) bool; False for a query without a positive in the gallery. Such a query has no
            R@K and no AP, and means leave it out.
    """

    scores: dict[str, torch.Tensor]
    valid: torch.Tensor


def retrieval(
    queries: torch.Tensor,
    index: torch.Tensor,
    gallery: torch.Tensor,
    relevance: Relevance,
    metric: Metric,
    recalls: tuple[int, ...] = (1, 2),
) -> Retrieval:
    """Rank the gallery for each query and compute the retrieval metrics.

    Args:
        queries: (Q, D) embeddings, clean or adversarial.
        index: (Q,) the number of each query, by which ``relevance`` knows it.
        gallery: (N, D) clean embeddings.
        relevance: the positives of each query, and what it never sees.
        metric: N, E or C.
        recalls: the values of K in R@K.
    """
    names = [*(f"R@{k}" for k in recalls), "mAP", "mAP@R", "mAP@10", TRAPEZOID]
    columns: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    block = max(1, BLOCK_CELLS // len(gallery))
    norms, tie = squared_norms(gallery), tie_tolerance(gallery)
    for rows in torch.split(torch.arange(len(queries), device=gallery.device), block):
        distance = pairwise(queries[rows], gallery, metric, norms)
        rank = _ranks_of_positives(distance, index[rows], relevance, metric, tie)
        for name, values in _scores(rank, recalls).items():
            columns[name].append(values)
    scores = {name: torch.cat(parts) for name, parts in columns.items()}
    return Retrieval(scores, ~scores["mAP"].isnan())


def _ranks_of_positives(
    distance: torch.Tensor,
    index: torch.Tensor,
    relevance: Relevance,
    metric: Metric,
    tie: float,
) -> torch.Tensor:
    """Compute the ranks (B, P) float64 of the positives, closest first, padded with inf.

    Squared distances give the same order as distances, and their rounding error has the same size
    everywhere, so one tolerance fits.

    Args:
        distance: (B, N) of the queries to the gallery; it is overwritten.
        index: (B,) the numbers of the queries.
        relevance: the positives of each query, and what it never sees.
        metric: of the distances.
        tie: ``tie_tolerance`` of the gallery.
    """
    if metric != "C":
        distance.square_()
        tie = tie**2 / TIE
    relevance.excluded.put(distance, index, torch.inf)
    same = relevance.positives.of(index)
    positive = distance.gather(1, same.clamp(min=0)).masked_fill_(same < 0, torch.inf)
    positive = positive.sort(dim=1).values.contiguous()
    # Only other items can worsen the rank of a positive: move the positives behind all of them.
    relevance.positives.put(distance, index, torch.inf)
    ahead = torch.zeros(positive.shape, dtype=torch.float64, device=distance.device)
    for side, right in ((-tie, False), (tie, True)):  # a tie counts in one pass of two: half
        place = torch.searchsorted(positive, distance + side, right=right)
        ahead += _histogram(place, positive.shape[1]).cumsum(1) / 2
    j = torch.arange(1, positive.shape[1] + 1, device=distance.device)
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
    before = torch.arange(rank.shape[1], device=rank.device) / (rank - 1)  # 0 / 0 at the top
    scores[TRAPEZOID] = (precision + before.nan_to_num(1)).sum(1) / (2 * size[:, 0])
    alone = size[:, 0] == 0
    return {name: (100 * value).masked_fill(alone, torch.nan) for name, value in scores.items()}
