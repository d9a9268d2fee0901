"""The gallery items that answer each query, and those that it never sees.

Both are lists of gallery positions. Most follow from groups: the answers to a query are the items
of its class, and the items that it never sees are those of its source (itself, where it lies in the
gallery). Where a benchmark lists the answers of each query, the lists are taken as they are.

The conventions of others, in these terms:

- CUB, Cars, SOP: queries and gallery are one, and every image is a source of its own (leave one
  out). RobRank does that, and knows no other exclusion.
- DeepFashion in-shop: queries and gallery are apart, and nothing is excluded.
- Person re-identification: a source is an identity on a camera, as items with both of the query
  are left out ("junk"); items of no identity are distractors.
- Revisited Oxford and Paris: a list of answers per query, and one of junk, which is excluded.
- mteb names the relevant items of each query (qrels) and excludes the item with the query's own
  id, where a task says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from dmlbench.common.lazy import torch

MASK_FROM = 64  # positions per query, from which on groups are compared item by item
BLOCK_CELLS = 8_000_000  # comparisons in memory at a time


@dataclass(frozen=True)
class Lists:
    """A list of gallery positions for each query; queries may share one.

    Attributes:
        table: (L, k) int64, the lists, with -1 behind the end of those that are shorter; k >= 1.
        row: (Q,) int64, the list of each query.
    """

    table: torch.Tensor
    row: torch.Tensor

    @classmethod
    def of_queries(
        cls, lists: Sequence[Sequence[int]], device: torch.device | str = "cpu"
    ) -> Lists:
        """One list a query."""
        width = max([1, *map(len, lists)])
        filled = [[*one, *[-1] * (width - len(one))] for one in lists]
        table = torch.tensor(filled, dtype=torch.int64, device=device)
        return cls(table, torch.arange(len(lists), device=device))

    def of(self, index: torch.Tensor) -> torch.Tensor:
        """(B, k) positions for the queries at ``index`` (B,); -1 behind the end of a list."""
        return self.table[self.row[index]]

    def joined(self, other: Lists) -> Lists:
        """The positions of both, each once."""
        index = torch.arange(len(self.row), device=self.row.device)
        return Lists(distinct(torch.cat([self.of(index), other.of(index)], dim=1)), index)

    @cached_property
    def lengths(self) -> torch.Tensor:
        """(Q,) number of positions of each query."""
        return (self.table >= 0).sum(1)[self.row]

    def contains(self, index: torch.Tensor, first: int, width: int) -> torch.Tensor:
        """(B, width) true where the item ``first + column`` is in the list of the query."""
        column = (self.of(index) - first).clamp(-1, width) + 1
        inside = torch.zeros(len(index), width + 2, dtype=torch.bool, device=column.device)
        return inside.scatter_(1, column, True)[:, 1:-1]

    def put(self, values: torch.Tensor, index: torch.Tensor, value: float, first: int = 0) -> None:
        """Put ``value`` into ``values`` at the positions of the lists, in place; see ``put``.

        Args:
            values: (B, width) numbers of the gallery items from ``first`` on.
            index: (B,) the queries.
            value: what is put.
            first: position of the first item.
        """
        put(values, self.of(index), value, first)


@dataclass(frozen=True)
class Groups(Lists):
    """Lists that follow from groups: those of a query are all items of its group.

    Attributes:
        items: (N,) group of each gallery item, -1 for none.
        queries: (Q,) group of each query, -2 for none.
    """

    items: torch.Tensor
    queries: torch.Tensor

    @classmethod
    def of_ids(cls, items: torch.Tensor, queries: torch.Tensor) -> Groups:
        """From ids (N,) and (Q,), numbered densely from 0; a negative one is of no group."""
        count = int(max(items.max(), queries.max(), torch.zeros_like(items[0]))) + 1
        table = class_members(items, count + 1)
        row = torch.where(queries < 0, count, queries)  # the last list is empty
        return cls(table, row, items, queries.masked_fill(queries < 0, -2))

    def contains(self, index: torch.Tensor, first: int, width: int) -> torch.Tensor:
        """(B, width) true where the item ``first + column`` is of the query's group."""
        return self.items[first : first + width] == self.queries[index][:, None]

    def put(self, values: torch.Tensor, index: torch.Tensor, value: float, first: int = 0) -> None:
        """As of any lists; large groups by comparing ids, whose cost does not grow with them."""
        if self.table.shape[1] < MASK_FROM:
            super().put(values, index, value, first)
        else:
            values.masked_fill_(self.contains(index, first, values.shape[1]), value)


@dataclass(frozen=True)
class Relevance:
    """The answers to each query, and the items that it never sees.

    Attributes:
        positives: the answers; one that is excluded as well is none.
        excluded: positions that are in no ranking of the query, and no target of an attack on it.
    """

    positives: Lists
    excluded: Lists

    @classmethod
    def leave_one_out(cls, labels: torch.Tensor) -> Relevance:
        """Every item is in turn the query, and searches all others; its class (N,) answers it."""
        own = torch.arange(len(labels), device=labels.device)
        return cls(Groups.of_ids(labels, labels), Lists(own[:, None], own))

    @cached_property
    def answers(self) -> torch.Tensor:
        """(Q,) number of positives of each query that it sees."""
        found = self.positives.lengths.clone()
        pairs = self.positives.table.shape[1] * self.excluded.table.shape[1]
        index = torch.arange(len(found), device=found.device)
        for rows in torch.split(index, max(1, BLOCK_CELLS // pairs)):
            excluded = self.excluded.of(rows)[:, None]
            excluded = excluded.masked_fill(excluded < 0, -2)  # -1 is the end of the positives
            found[rows] -= (self.positives.of(rows)[:, :, None] == excluded).any(2).sum(1)
        return found


def distinct(table: torch.Tensor) -> torch.Tensor:
    """The different values of each row of ``table`` (L, k), in falling order: (L, p).

    A negative value is none. Rows with fewer than the most, p, have -1 behind them; p >= 1.
    """
    table = table.sort(dim=1, descending=True).values
    table[:, 1:].masked_fill_(table[:, 1:] == table[:, :-1], -1)
    table = table.sort(dim=1, descending=True).values
    return table[:, : max(1, int((table >= 0).sum(1).max()))].contiguous()


def put(values: torch.Tensor, positions: torch.Tensor, value: float, first: int = 0) -> None:
    """Put ``value`` into ``values`` at ``positions``, in place.

    None of ``values`` may be larger in magnitude than ``value``, such as inf or -inf.

    Args:
        values: (B, width) floating-point numbers of the gallery items from ``first`` on.
        positions: (B, k) gallery positions; what lies outside ``values`` is passed over.
        value: what is put.
        first: position of the first item.
    """
    column = positions - first
    inside = (column >= 0) & (column < values.shape[1])
    # by maximum or minimum, as a position outside must not undo another in the same column
    number = values.new_full((), value)
    put_there = torch.where(inside, number, -number)
    column = column.clamp(0, values.shape[1] - 1)
    values.scatter_reduce_(1, column, put_there, "amax" if value > 0 else "amin")


def class_members(labels: torch.Tensor, count: int) -> torch.Tensor:
    """List the gallery positions of each class: (count, largest class size) int64, ascending.

    Rows of smaller classes are padded with -1.

    Args:
        labels: (N,) class of each gallery item, negative for none.
        count: number of classes, more than the largest label.
    """
    known = (labels >= 0).nonzero()[:, 0]
    classes = labels[known]
    sizes = torch.bincount(classes, minlength=count)
    order = torch.argsort(classes, stable=True)
    column = torch.arange(len(classes), device=labels.device)
    column = column - (sizes.cumsum(0) - sizes)[classes[order]]
    members = labels.new_full((count, max(1, int(sizes.max()))), -1)
    members[classes[order], column] = known[order]
    return members
