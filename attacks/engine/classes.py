"""The nearest items of each query's own class and of the other classes nearest to it.

With d_c the distance from a query to class c, retrieval is a classifier with the logits -d_c.
Classes may have any size. They are kept sorted by size in blocks of about CHUNK items; the
classes of a block are padded to one width, so that a block is one matrix product and one minimum
over its last dimension. Memory is queries x CHUNK (or x the largest class), whatever the gallery.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.attacks.engine.query_loss import CHUNK
from dmlbench.attacks.engine.ranked_list import RankedLists
from dmlbench.common.lazy import torch

RIVALS = 2  # other classes that are looked for


class Nearest(NamedTuple):
    """Positions of a query's nearest items by class, closest first, -1 where there is none.

    Attributes:
        own: (B, k) of the query's own class, the query's own entry left out.
        rivals: (B, 2, k) of the two nearest other classes: those whose k nearest items are
            nearest on average (fewer where a class is smaller).
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
        embeddings: (c * w, D) of the items; norms: (c * w,) their squared norms, inf for none.
    """

    first: int
    items: torch.Tensor
    embeddings: torch.Tensor
    norms: torch.Tensor

    def pick(self, near: torch.Tensor, column: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Gallery positions (B, p, k) of the nearest items of the classes ``place`` (B, p).

        Args:
            near, column: (B, c, k) the k nearest of every class: distance and column.
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
        begins = (sizes.cumsum(0) - sizes).tolist()
        widths = sizes.tolist()
        self._blocks: list[_Block] = []
        self._address = torch.empty_like(labels)  # of an item: its place among all padded ones
        first = padded = 0
        while first < len(widths):
            width = widths[first]
            count = min(max(1, CHUNK // width), len(widths) - first)
            items = labels.new_full((count, width), -1)
            for line in range(count):
                begin, size = begins[first + line], widths[first + line]
                items[line, :size] = order[begin : begin + size]
            there = items >= 0
            embeddings = gallery.embeddings[items.clamp(min=0).flatten()]
            norms = embeddings.square().sum(1)
            if self._metric == "C":
                norms = torch.zeros_like(norms)
            norms.masked_fill_(~there.flatten(), torch.inf)
            self._blocks.append(_Block(first, items, embeddings, norms))
            address = torch.arange(count * width, device=items.device).view(count, width)
            self._address[items[there]] = padded + address[there]
            first, padded = first + count, padded + count * width

    @cached_property
    def ranked_lists(self) -> RankedLists:
        """The lists of the gallery, with these classes."""
        return RankedLists.of(self._gallery, self.place_of_item)

    def nearest(
        self, e: torch.Tensor, index: torch.Tensor, own: torch.Tensor, k: int = 1
    ) -> Nearest:
        """Search the classes for the queries ``e`` (B, D).

        Args:
            e: embeddings of the queries.
            index: (B,) their own entries in the gallery, which never count.
            own: (B,) the place of their own class (``place_of_item`` of an item of it).
            k: how many items of a class are looked for.
        """
        rows, size = len(e), e.square().sum(1)[:, None, None]
        own_items = index.new_full((rows, k), -1)
        rivals = index.new_full((rows, RIVALS, k), -1)
        closest = index.new_full((rows,), -1)
        scores, least = e.new_full((rows, RIVALS), torch.inf), e.new_full((rows,), torch.inf)
        address, scale = self._address[index], -1 if self._metric == "C" else -2
        for block in self._blocks:
            count, width = block.items.shape
            d = torch.addmm(block.norms, e, block.embeddings.T, alpha=scale)
            _leave_out(d, address)
            near, column = _smallest(d.view(rows, count, width), min(k, width))
            mine = own - block.first
            others = near[..., 0].clone()
            _leave_out(others, mine)
            score = self._mean(near, size).masked_fill_(others.isinf(), torch.inf)

            items = _wide(block.pick(near, column, mine.clamp(0, count - 1)[:, None]), k)
            inside = (mine >= 0) & (mine < count)
            own_items = torch.where(inside[:, None], items[:, 0], own_items)

            best, place = score.topk(min(RIVALS, count), dim=1, largest=False)
            items = _wide(block.pick(near, column, place), k)
            items.masked_fill_(best.isinf()[..., None], -1)
            scores, order = torch.cat([scores, best], 1).topk(RIVALS, dim=1, largest=False)
            rivals = torch.cat([rivals, items], 1).gather(1, order[..., None].expand(-1, -1, k))

            nearest, place = others.min(1)
            items = block.pick(near, column, place[:, None])[:, 0, 0]
            closest = torch.where(nearest < least, items, closest)
            least = least.minimum(nearest)
            address = address - count * width
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


def _leave_out(d: torch.Tensor, column: torch.Tensor) -> None:
    """Put inf at ``column`` (B,) of ``d`` (B, n), where there is such a column."""
    inside = (column >= 0) & (column < d.shape[1])
    column = column.clamp(0, d.shape[1] - 1)[:, None]
    d.scatter_(1, column, d.gather(1, column).masked_fill(inside[:, None], torch.inf))


def _wide(items: torch.Tensor, k: int) -> torch.Tensor:
    """``items`` (..., fewer) padded with -1 to (..., k)."""
    return torch.nn.functional.pad(items, (0, k - items.shape[-1]), value=-1)
