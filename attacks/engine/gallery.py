"""The gallery: clean embeddings in which the queries are searched, with those of the queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

from dmlbench.attacks.engine.targets import draw, positions
from dmlbench.common.errors import CellError, UserError
from dmlbench.common.lazy import torch
from dmlbench.metrics.distance import Metric, pairwise
from dmlbench.metrics.ranks import tie_tolerance
from dmlbench.metrics.relevance import Lists, Relevance, class_members
from dmlbench.metrics.retrieval import retrieval

if TYPE_CHECKING:
    Images = Callable[[torch.Tensor], torch.Tensor]

BLOCK_CELLS = 16_000_000  # distances held at once: 128 MB in float64, 264 rows of SOP
PART = 8192  # gallery items converted to float64 at once
TOP_SHARE = 100  # "the nearest 1%"

T = TypeVar("T")


@dataclass
class Rows:
    """A table (Q, width) of gallery positions, whose rows are computed when first asked for.

    Attributes:
        block: numbers of queries (b,) -> their rows (b, width).
        most: rows that are computed at once.
        place: (Q,) where the row of a query lies in ``table``, -1 for nowhere yet.
        table: (at least as many as there are rows, width) int32.
    """

    block: Callable[[torch.Tensor], torch.Tensor]
    most: int
    place: torch.Tensor
    table: torch.Tensor
    used: int = 0

    @property
    def width(self) -> int:
        """Positions a query."""
        return self.table.shape[1]

    def of(self, index: torch.Tensor) -> torch.Tensor:
        """The rows (B, width) of the queries ``index`` (B,)."""
        missing = torch.unique(index[self.place[index] < 0])
        for rows in torch.split(missing, self.most) if len(missing) else ():
            self._keep(rows, self.block(rows).int())
        return self.table[self.place[index]]

    def _keep(self, rows: torch.Tensor, found: torch.Tensor) -> None:
        end = self.used + len(rows)
        if end > len(self.table):  # twice as many, so that few copies are made as it grows
            many = min(max(end, 2 * len(self.table)), len(self.place))
            grown = self.table.new_empty(many, self.width)
            grown[: self.used] = self.table[: self.used]
            self.table = grown
        self.table[self.used : end] = found
        self.place[rows] = torch.arange(self.used, end, device=rows.device)
        self.used = end


@dataclass(frozen=True)
class Gallery:
    """The items that are searched and the queries that search them, as clean embeddings.

    A query is known by its number, its place among ``queries``. Unless they are given, every item
    is in turn the query; ``queries`` are the embeddings then.

    Attributes:
        embeddings: (N, D), unit length for metrics N and C.
        labels: (N,) int64, the class of each item; -1 for a distractor, which is of no class.
        metric: N, E or C.
        images: gives the images (b, C, H, W) at positions (b,), for another network to embed;
            None where they are not at hand.
        queries: (Q, D) clean embeddings of the queries.
        relevance: the answers to each query, and the items that it never sees; unless it is given,
            an item answers to its class and sees all but itself.
        query_images: as ``images``, of the queries.
        apart: true if the queries are not the items.
        train: makes ``train_split``; None where that is not at hand.
        under_test: the same items as the model under test embeds them; None: these are its
            embeddings.
    """

    embeddings: torch.Tensor
    labels: torch.Tensor
    metric: Metric
    _shared: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    images: Images | None = field(default=None, repr=False, compare=False)
    queries: torch.Tensor = field(default=None, repr=False)  # type: ignore[assignment]
    relevance: Relevance = field(default=None, repr=False)  # type: ignore[assignment]
    query_images: Images | None = field(default=None, repr=False, compare=False)
    apart: bool = False
    train: Callable[[], Gallery] | None = field(default=None, repr=False, compare=False)
    under_test: Gallery | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        n = len(self.embeddings)
        if self.embeddings.ndim != 2 or self.labels.shape != (n,):
            raise UserError(
                f"a gallery needs (N, D) embeddings and N labels, got "
                f"{tuple(self.embeddings.shape)} and {tuple(self.labels.shape)}"
            )
        if cast("torch.Tensor | None", self.queries) is None:
            object.__setattr__(self, "queries", self.embeddings)
            object.__setattr__(self, "query_images", self.images)
        if cast("Relevance | None", self.relevance) is None:
            object.__setattr__(self, "relevance", Relevance.leave_one_out(self.labels))
        for e in (self.embeddings, self.queries):
            if e.numel() and not torch.stack(e.aminmax()).isfinite().all():  # NaN is both
                raise CellError("the model's clean embeddings are not finite")

    def __len__(self) -> int:
        return len(self.labels)

    def shared(self, name: str, make: Callable[[], T]) -> T:
        """The result of ``make``, made once for all attacks and kept under ``name``."""
        if name not in self._shared:
            self._shared[name] = make()
        kept: T = self._shared[name]
        return kept

    @property
    def tie(self) -> float:
        """Two distances that differ by less than this are tied (``tie_tolerance``). Kept."""
        return self.shared("tie", lambda: float(torch.tensor(tie_tolerance(self.embeddings))))

    def as_embedded_by(
        self, metric: Metric, look: Callable[[Images, int], torch.Tensor]
    ) -> Gallery:
        """The same items and queries as another network embeds them.

        Args:
            metric: of that network.
            look: (images, count) -> (count, D) its embeddings of these images.
        """
        assert self.images is not None
        assert self.query_images is not None
        e = look(self.images, len(self))
        return replace(
            self,
            embeddings=e,
            metric=metric,
            queries=look(self.query_images, len(self.queries)) if self.apart else e,
            train=self.train and (lambda: self.train_split.as_embedded_by(metric, look)),
            _shared={},
            under_test=self,
        )

    @property
    def train_split(self) -> Gallery:
        """The train split as a gallery, in which each image is in turn the query. Kept.

        Raises:
            CellError: it is not at hand, or empty.
        """
        if self.train is None:
            raise CellError("the attack is made on a train split, and the data set has none")
        return self.shared("train split", self.train)

    @cached_property
    def classes(self) -> torch.Tensor:
        """(N,) the labels, in which every distractor is of a class of its own."""
        none = self.labels < 0
        if not none.any():
            return self.labels
        return torch.where(none, self.labels.max() + none.cumsum(0), self.labels)

    @property
    def seen(self) -> torch.Tensor:
        """(Q,) number of items that each query sees. Kept."""
        return self.shared("seen", lambda: len(self) - self.relevance.excluded.lengths)

    @property
    def least_seen(self) -> int:
        """The number of items that every query sees at least. Kept."""
        return self.shared("least seen", lambda: int(self.seen.min()))

    def check_ranks(self) -> None:
        """Check that every query sees two items or more, so that one can be ranked among others.

        Raises:
            CellError: a query sees a single item, or none.
        """
        if self.least_seen < 2:
            raise CellError(
                f"the gallery of {len(self)} is too small: a query sees {self.least_seen} of its "
                "items, and the attack ranks one of them among others"
            )

    def distances(self, queries: torch.Tensor) -> torch.Tensor:
        """(B, N) float64 distances of ``queries`` (B, D) to every item.

        float64 because a squared distance is a difference, and close items differ in its last
        bits; a part of the gallery at a time, so that it is never there twice.
        """
        parts = torch.split(self.embeddings, PART)
        wide = queries.double()
        return torch.cat([pairwise(wide, part.double(), self.metric) for part in parts], dim=1)

    def distances_seen(self, e: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """The same for embeddings ``e`` of the queries ``index`` (B,), inf for unseen ones."""
        d = self.distances(e)
        self.relevance.excluded.put(d, index, torch.inf)
        return d

    def recall_at_1(self, e: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """R@1 (B,), 0 or 100, of the queries ``index`` with embeddings ``e`` (B, D).

        NaN where a query has no positive.
        """
        found = retrieval(e, index, self.embeddings, self.relevance, self.metric, recalls=(1,))
        return found.scores["R@1"]

    def draw(
        self,
        index: torch.Tensor,
        count: int,
        seed: int,
        purpose: str,
        pool: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, count) targets drawn for the queries ``index`` (B,) among the items that they see.

        Arguments and errors are those of ``targets.draw``.
        """
        excluded = self.relevance.excluded.of(index)
        return draw(len(self), index, count, seed, purpose, pool, excluded)

    def nearest(self, index: torch.Tensor, count: int) -> torch.Tensor:
        """(B, count) positions of the items nearest to the queries ``index`` (B,), closest first.

        The results are kept. Which of equally near items come first may depend on how many items
        are searched for, so each such number has a table of its own.

        Raises:
            CellError: a query sees fewer than ``count`` items.
        """
        if count > self.least_seen:
            raise CellError(f"the nearest {count} others do not exist in a gallery of {len(self)}")
        size = min(max(count, len(self) // TOP_SHARE), self.least_seen)
        known = self._shared.get(f"nearest {size}")
        if known is None or known.width < count:

            def block(rows: torch.Tensor) -> torch.Tensor:
                found = self._others(rows).topk(size, dim=1, largest=False).indices
                return found[:, :count]

            known = self._shared[f"nearest {size}"] = self._rows(block, count)
        return known.of(index)[:, :count].long()

    def neighbourhood(self, index: torch.Tensor, least: int) -> torch.Tensor:
        """(B, P) positions of the 1% nearest to each query of ``index``, at least ``least``."""
        size = max(len(self) // TOP_SHARE, least)
        return self.nearest(index, min(size, self.least_seen))

    def nearest_of_another_class(self, index: torch.Tensor) -> torch.Tensor:
        """(B,) position of the item nearest to each query ``index`` that is no positive. Kept.

        Raises:
            CellError: a query sees nothing but its positives.
        """

        def block(rows: torch.Tensor) -> torch.Tensor:
            d = self._others(rows)
            self.relevance.positives.put(d, rows, torch.inf)
            return _nearest_unlike(d)

        return self.shared("another class", lambda: self._rows(block, 1)).of(index)[:, 0].long()

    def nearest_unlike_the_top1(self, index: torch.Tensor) -> torch.Tensor:
        """(B,) position of each query's nearest item whose label differs from its top-1's. Kept."""

        def block(rows: torch.Tensor) -> torch.Tensor:
            top1 = self.nearest(rows, 1)
            d = self._others(rows)
            return _nearest_unlike(d.masked_fill_(self.classes[top1] == self.classes, torch.inf))

        return self.shared("not of the top-1", lambda: self._rows(block, 1)).of(index)[:, 0].long()

    def _others(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, N) distances of the clean queries ``rows`` to all items, inf to unseen ones."""
        return self.distances_seen(self.queries[rows], rows)

    def _rows(self, block: Callable[[torch.Tensor], torch.Tensor], width: int) -> Rows:
        most = max(1, BLOCK_CELLS // len(self))
        place = torch.full((len(self.queries),), -1, device=self.labels.device)
        return Rows(
            block, most, place, torch.empty(0, width, dtype=torch.int32, device=place.device)
        )

    @property
    def candidates(self) -> torch.Tensor:
        """(Q,) position of the item that is perturbed with each query's number, as a candidate.

        It is the query itself where every item is one. Otherwise they are drawn, the same for every
        model, attack and seed; each item once before one comes again. Kept.
        """
        count = len(self.queries)
        device = self.labels.device

        def make() -> torch.Tensor:
            chosen = positions(len(self), count) if self.apart else torch.arange(count)
            return chosen.to(device)

        return self.shared("candidates", make)

    @property
    def turned(self) -> Gallery:
        """The queries as a gallery that the ``candidates`` search, with the same exclusions. Kept.

        A candidate does not see a query that does not see it. Where every item is in turn the
        query, this is the gallery itself.
        """
        if not self.apart:
            return self
        return self.shared("turned", self._turn)

    def _turn(self) -> Gallery:
        index = torch.arange(len(self.queries), device=self.labels.device)
        hidden = self.relevance.excluded.of(index)
        query, column = (hidden >= 0).nonzero(as_tuple=True)
        # of each item: which of these pairs are its own, and so which queries do not see it
        pairs = class_members(hidden[query, column], len(self))
        table = query[pairs.clamp(min=0)].masked_fill(pairs < 0, -1) if len(query) else pairs
        excluded = Lists(table, self.candidates)
        none = Lists(index.new_full((1, 1), -1), torch.zeros_like(index))
        return Gallery(
            self.queries,
            torch.full_like(index, -1),
            self.metric,
            queries=self.embeddings[self.candidates],
            relevance=Relevance(none, excluded),
            apart=True,
        )


def _nearest_unlike(d: torch.Tensor) -> torch.Tensor:
    """(B, 1) column of the smallest of the distances (B, N), which are inf where alike.

    Raises:
        CellError: all of a query are inf.
    """
    values, column = d.min(dim=1, keepdim=True)
    if values.isinf().any():
        raise CellError("the gallery holds a single class: no item has another label")
    return column
