"""FNA, the furthest-negative attack: away from the own class, to the centre of the farthest other.

With g the images of the query's class and c_far the mean embedding of the class that is farthest
from the clean query,

    L = |f(q~) - c_far|^2 - sum_g |f(q~) - g|^2

(Bouniot et al., CVPRW 2020; CEA-LIST/adv-reid, ``utils/adv_evaluation.py``: ``max_min_mse``.)
Squared Euclidean distances under every metric, as there.

``strict``: g are the images that answer the query. ``ers``, as the published code: the clean query
is one of the g, and it is repeated until there are as many as in the largest class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from dmlbench.attacks import moved_query
from dmlbench.attacks.base import ATTACKS, Attack, RowWise
from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.attacks.engine.query_loss import CHUNK
from dmlbench.common.errors import CellError
from dmlbench.common.lazy import torch
from dmlbench.core.papers import BOUNIOT
from dmlbench.core.registry import Card
from dmlbench.metrics.distance import pairwise
from dmlbench.metrics.relevance import put

BLOCK = 8 * CHUNK  # items whose embeddings are summed up at once
COLUMNS = moved_query.recall_and_map("FNA")


@dataclass(frozen=True)
class FurthestNegativeGoal(RowWise):
    """FNA on the queries ``index`` (B,).

    Attributes:
        pull: (B, D) the centre of the farthest other class.
        count: (B,) the number of images g.
        total: (B, D) the sum of their embeddings.
        squares: (B,) the sum of the squared lengths of these.
    """

    gallery: Gallery
    index: torch.Tensor
    pull: torch.Tensor
    count: torch.Tensor
    total: torch.Tensor
    squares: torch.Tensor

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (B,) and gradients (B, D)."""
        near, count = e - self.pull, self.count
        away = count * e.square().sum(1) - 2 * (e * self.total).sum(1) + self.squares
        return near.square().sum(1) - away, 2 * (near - count[:, None] * e + self.total)

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        """R@1 and mAP."""
        return moved_query.outcomes(COLUMNS, e, self.index, self.gallery)


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class FurthestNegative(Attack):
    """FNA (Bouniot et al., CVPRW 2020)."""

    card = Card("fna", "move a query away from its class, to the farthest other one", BOUNIOT)
    columns = COLUMNS

    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> FurthestNegativeGoal:
        """The images of the query's class, summed up, and the centre of the farthest other."""
        count, total, squares = _own(gallery, index)
        if not self.strict:
            largest = gallery.shared("largest class", lambda: int(gallery.relevance.answers.max()))
            more, q = largest + 1 - count, gallery.queries[index].double()
            total = total + more[:, None] * q
            squares, count = squares + more * q.square().sum(1), count + more
        pull = _farthest_centre(gallery, index)
        parts = (pull, count, total, squares)
        return FurthestNegativeGoal(gallery, index, *(x.to(gallery.embeddings) for x in parts))


def _own(gallery: Gallery, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Number (B,), sum (B, D) and sum of squared lengths (B,) of the answers, in float64."""
    total = torch.zeros_like(gallery.queries[index], dtype=torch.float64)
    count, squares = torch.zeros_like(total[:, 0]), torch.zeros_like(total[:, 0])
    relevance = gallery.relevance
    for number, part in enumerate(torch.split(gallery.embeddings, CHUNK)):
        items, first = part.double(), number * CHUNK
        own = relevance.positives.contains(index, first, len(items)).double()
        relevance.excluded.put(own, index, -torch.inf, first)
        own.clamp_(min=0)
        count += own.sum(1)
        total += own @ items
        squares += own @ items.square().sum(1)
    return count, total, squares


class _ByClass(NamedTuple):
    """A gallery sorted by class.

    Attributes:
        place: (N,) the number of each item's class, from 0.
        order: (N,) the positions of the items, class by class.
        begins: (C + 1,) where the items of each class begin in ``order``; the end is N.
    """

    place: torch.Tensor
    order: torch.Tensor
    begins: torch.Tensor

    @classmethod
    def of(cls, gallery: Gallery) -> _ByClass:
        place: torch.Tensor = torch.unique(gallery.classes, return_inverse=True)[1]
        ends = torch.bincount(place).cumsum(0)
        return cls(place, place.argsort(stable=True), torch.cat([ends.new_zeros(1), ends]))

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Pairs (first, last): the classes from ``first`` to before ``last`` make a block.

        A block has at most ``BLOCK`` items, or is one class that is larger.
        """
        begins, first = self.begins.cpu(), 0
        while first < len(begins) - 1:
            last = int(torch.searchsorted(begins, begins[first] + BLOCK, right=True)) - 1
            yield first, (first := max(last, first + 1))

    def means(self, embeddings: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """The mean embeddings of a block of classes, (last - first, D) float64."""
        sums = embeddings.new_zeros(last - first, embeddings.shape[1], dtype=torch.float64)
        for items in torch.split(self.order[self.begins[first] : self.begins[last]], BLOCK):
            sums.index_add_(0, self.place[items] - first, embeddings[items].double())
        return sums / self.begins[first : last + 1].diff()[:, None]


def _farthest_centre(gallery: Gallery, index: torch.Tensor) -> torch.Tensor:
    """(B, D) float64, the mean embedding of the class farthest from each query that is not its own.

    The means are computed again for each batch, block by block, so that memory does not grow with
    the number of classes.

    Raises:
        CellError: there is no other class.
    """
    by_class = gallery.shared("by class", lambda: _ByClass.of(gallery))
    queries, answers = gallery.queries[index].double(), gallery.relevance.positives.of(index)
    own = by_class.place[answers.clamp(min=0)].masked_fill(answers < 0, -1)
    pull, most = torch.zeros_like(queries), torch.full_like(queries[:, 0], -torch.inf)
    for first, last in by_class.blocks():
        centres = by_class.means(gallery.embeddings, first, last)
        d = pairwise(queries, centres, "E")
        put(d, own, -torch.inf, first)
        farthest, column = d.max(1)
        pull = torch.where((farthest > most)[:, None], centres[column], pull)
        most = most.maximum(farthest)
    if most.isinf().any():
        raise CellError("the gallery holds a single class: there is no other one to move to")
    return pull
