"""Distances to bisectors: an embedding that moves by less keeps its right top-1.

Between an item a of the query's own class and an item b of another lies the plane of the points as
far from a as from b, the bisector. The distance from e to it, positive on the side of a, is

    m_ab = (|e - b|^2 - |e - a|^2) / (2 |a - b|)

As long as e moves by less than M = max_a min_b m_ab, one own item stays nearer than all others and
the top-1 is right. RetrievalGuard has (|e - b| - |e - a|) / 2 in the place of m_ab, which is never
larger: m_ab is that times (|e - b| + |e - a|) / |a - b| >= 1.
"""

from __future__ import annotations

from dmlbench.attacks.engine.gallery import BLOCK_CELLS, PART, Gallery
from dmlbench.common.lazy import torch
from dmlbench.metrics.distance import squared_norms

OWN = 5  # items of the own class, the nearest ones, over which the maximum is taken
SAME = 1e-6  # two items that are not further apart are one: their bisector certifies nothing


def margin(
    gallery: Gallery, e: torch.Tensor, index: torch.Tensor, item: torch.Tensor | None = None
) -> torch.Tensor:
    """(B,) M in float64; -inf where no item is the query's own, inf where no other is seen.

    Args:
        gallery: items of unit length (metrics N and C).
        e: (B, D) float64 embeddings of the queries, of any length.
        index: (B,) the numbers of the queries.
        item: (B,) the only own item of each query; None: those that answer it.
    """
    most = max(1, BLOCK_CELLS // len(gallery))
    every = torch.arange(len(index), device=index.device)
    parts = [
        _block(gallery, e[rows], index[rows], None if item is None else item[rows])
        for rows in torch.split(every, most)
    ]
    return torch.cat(parts) if parts else e.new_empty(0)


def _block(
    gallery: Gallery, e: torch.Tensor, index: torch.Tensor, item: torch.Tensor | None
) -> torch.Tensor:
    """The same for few queries."""
    x = gallery.embeddings
    norms = gallery.shared("squared lengths", lambda: squared_norms(x.double()))
    nearness = norms - 2 * _products(e, x)  # |e - x|^2 - |e|^2
    if item is None:
        own = torch.zeros_like(nearness)
        gallery.relevance.positives.put(own, index, 1)
    else:
        own = torch.zeros_like(nearness).scatter_(1, item[:, None], 1)
    gallery.relevance.excluded.put(nearness, index, torch.inf)
    mine = nearness.masked_fill(own == 0, torch.inf)
    others = nearness.masked_fill(own > 0, torch.inf)
    near, place = mine.topk(min(OWN, len(gallery)), dim=1, largest=False)
    best = e.new_full((len(e),), -torch.inf)
    for number in range(near.shape[1]):
        a = place[:, number]
        squared = norms[a, None] + norms - 2 * _products(x[a].double(), x)
        apart = squared.clamp(min=0).sqrt()
        gap = others - near[:, number, None]
        distance = torch.where(apart > SAME, gap / (2 * apart), gap.clamp(max=0))
        distance = distance.masked_fill(others.isinf(), torch.inf)
        least = distance.amin(1).masked_fill(near[:, number].isinf(), -torch.inf)
        best = best.maximum(least)
    return best


def _products(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(B, N) float64 products of ``a`` (B, D) with the items ``x`` (N, D), a part at a time."""
    return torch.cat([a @ part.double().T for part in torch.split(x, PART)], dim=1)
