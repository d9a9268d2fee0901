"""The nearest items of each query's own class and of the other classes nearest to it.

With d_c the distance from a query to class c, retrieval is a classifier with the logits -d_c. Where
answers are listed and items have no class, every item is one, and a query has several of its own.
Classes may have any size. They are kept sorted by size in blocks of about CHUNK items; the
classes of a block are padded to one width, so that a block is one matrix product and one minimum
over its last dimension. The embeddings of a block are gathered when it is searched. Memory is
queries x CHUNK (or x the largest class), whatever the gallery.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.attacks.engine.query_loss import CHUNK
from dmlbench.common.lazy import torch
from dmlbench.metrics.distance import squared_norms
from dmlbench.metrics.relevance import distinct, put

RIVALS = 2  # other classes that are looked for


class Nearest(NamedTuple):
    """Positions of a query's nearest items by class, closest first, -1 where there is none.

    Attributes:
        own: (B, k) of the query's own classes, of the items that it sees.
        rivals: (B, 2, k) of the two other classes whose k nearest items have the least mean
            distance to the query. Of a class with fewer than k items all count.
        closest: (B,) the nearest item of all other classes together.
    """

    own: torch.Tensor
    rivals: torch.Tensor
    closest: torch.Tensor


@dataclass(frozen=True)
class _Block:
    """Some classes of about one size.

    Attributes:
        first: place of its first class in the order of all classes.
        items: (c, w) gallery positions, -1 where a class has fewer.
        norms: (c * w,) squared norms of their embeddings, inf for none.
    """

    first: int
    items: torch.Tensor
    norms: torch.Tensor

    def of(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(c * w, D) the items' rows of ``embeddings`` (N, D), any row where there is none."""
        return embeddings[self.items.clamp(min=0).flatten()]

    def pick(self, near: torch.Tensor, column: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Gallery positions (B, p, k) of the nearest items of some classes, -1 for none.

        Args:
            near: (B, c, k) the distances of the k nearest items of every class, inf for none.
            column: (B, c, k) the columns of these items in ``items``.
            place: (B, p) the places of the wanted classes in this block.
        """
        wide = place[..., None].expand(-1, -1, near.shape[2])
        found = self.items[place[..., None], column.gather(1, wide)]
        return found.masked_fill(near.gather(1, wide).isinf(), -1)


class Classes:
    """A gallery, class by class.

    Args:
        gallery: the items.
        labels: (N,) the class of each item; the gallery's labels, or others.
    """

    def __init__(self, gallery: Gallery, labels: torch.Tensor) -> None:
        self._metric = gallery.metric
        self._gallery = gallery
        labels = torch.unique(labels, return_inverse=True)[1]
        sizes = torch.bincount(labels)
        by_size = sizes.argsort(stable=True, descending=True)
        self._place = torch.empty_like(by_size)  # of a class in the order by size
        self._place[by_size] = torch.arange(len(by_size), device=by_size.device)
        self.place_of_item = self._place[labels]
        order = self.place_of_item.argsort(stable=True)
        sizes = sizes[by_size]
        begins = sizes.cumsum(0) - sizes
        widths = sizes.tolist()
        norms = squared_norms(gallery.embeddings)
        if self._metric == "C":
            norms = torch.zeros_like(norms)
        self._blocks: list[_Block] = []
        self._address = torch.empty_like(labels)  # of an item: its place among all padded ones
        first = padded = 0
        while first < len(widths):
            width = widths[first]
            count = min(max(1, CHUNK // width), len(widths) - first)
            column = torch.arange(width, device=order.device)
            there = column < sizes[first : first + count, None]
            address = begins[first : first + count, None] + column
            items = order[address.clamp(max=len(order) - 1)].masked_fill(~there, -1)
            known = norms[items.clamp(min=0).flatten()]
            known = known.masked_fill(~there.flatten(), torch.inf)
            self._blocks.append(_Block(first, items, known))
            address = torch.arange(count * width, device=items.device).view(count, width)
            self._address[items[there]] = padded + address[there]
            first, padded = first + count, padded + count * width

    def places(self, items: torch.Tensor) -> torch.Tensor:
        """(L, p) places of the different classes of ``items`` (L, k), -1 behind the last of a line.

        An item is a gallery position, -1 for none.
        """
        return distinct(self.place_of_item[items.clamp(min=0)].masked_fill(items < 0, -1))

    def nearest(
        self, e: torch.Tensor, index: torch.Tensor, own: torch.Tensor, k: int = 1
    ) -> Nearest:
        """Search the classes for the queries ``e`` (B, D).

        Args:
            e: embeddings of the queries.
            index: (B,) their numbers.
            own: (B, p) the places of their own classes (``places`` of their answers).
            k: how many items of a class are looked for.
        """
        rows, size = len(e), e.square().sum(1)[:, None, None]
        own_items, own_near = index.new_full((rows, k), -1), e.new_full((rows, k), torch.inf)
        rivals = index.new_full((rows, RIVALS, k), -1)
        closest = index.new_full((rows,), -1)
        scores, least = e.new_full((rows, RIVALS), torch.inf), e.new_full((rows,), torch.inf)
        excluded = self._gallery.relevance.excluded.of(index)
        address = self._address[excluded.clamp(min=0)].masked_fill(excluded < 0, -1)
        x, scale, passed = self._gallery.embeddings, -1 if self._metric == "C" else -2, 0
        for block in self._blocks:
            count, width = block.items.shape
            d = torch.addmm(block.norms, e, block.of(x).T, alpha=scale)
            put(d, address, torch.inf, passed)
            near, column = _smallest(d.view(rows, count, width), min(k, width))
            others = near[..., 0].clone()
            put(others, own, torch.inf, block.first)
            score = self._mean(near, size).masked_fill_(others.isinf(), torch.inf)

            mine = own - block.first
            outside, mine = ((mine < 0) | (mine >= count))[..., None], mine.clamp(0, count - 1)
            items = block.pick(near, column, mine).masked_fill(outside, -1).flatten(1)
            found = near.gather(1, mine[..., None].expand(-1, -1, near.shape[2]))
            found = found.masked_fill(outside, torch.inf).flatten(1)
            own_near, order = torch.cat([own_near, found], 1).sort(dim=1, stable=True)
            own_items = torch.cat([own_items, items], 1).gather(1, order)[:, :k]
            own_near = own_near[:, :k]

            best, place = score.topk(min(RIVALS, count), dim=1, largest=False)
            items = _wide(block.pick(near, column, place), k)
            items.masked_fill_(best.isinf()[..., None], -1)
            scores, order = torch.cat([scores, best], 1).topk(RIVALS, dim=1, largest=False)
            rivals = torch.cat([rivals, items], 1).gather(1, order[..., None].expand(-1, -1, k))

            nearest, place = others.min(1)
            items = block.pick(near, column, place[:, None])[:, 0, 0]
            closest = torch.where(nearest < least, items, closest)
            least = least.minimum(nearest)
            passed += count * width
        return Nearest(own_items, rivals, closest)

    def _mean(self, near: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        """(B, c) mean distance of the k nearest, from the products of a block (B, c, k)."""
        there = near.isfinite()
        d = 1 + near if self._metric == "C" else (near + size).clamp(min=0).sqrt()
        count = there.sum(2)
        return torch.where(there, d, 0).sum(2).div(count).masked_fill(count == 0, torch.inf)


def _smallest(d: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and columns of the k smallest of each row of ``d`` (B, c, w), ascending."""
    if k == 1:
        value, column = d.min(2, keepdim=True)
    else:
        value, column = d.topk(k, dim=2, largest=False)
    return value, column


def _wide(items: torch.Tensor, k: int) -> torch.Tensor:
    """``items`` (..., fewer) padded with -1 to (..., k)."""
    return torch.nn.functional.pad(items, (0, k - items.shape[-1]), value=-1)
