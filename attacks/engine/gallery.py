"""The gallery: the clean embeddings of the test split, in which a query is searched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dmlbench.common.errors import CellError, UserError
from dmlbench.common.lazy import torch
from dmlbench.metrics.distance import Metric, pairwise
from dmlbench.metrics.ranks import tie_tolerance
from dmlbench.metrics.retrieval import retrieval

BLOCK_CELLS = 16_000_000  # distances held at once: 128 MB in float64, 264 rows of SOP
PART = 8192  # gallery items converted to float64 at once
TOP_SHARE = 100  # "the nearest 1%"

T = TypeVar("T")


@dataclass(frozen=True)
class Gallery:
    """The clean embeddings of the test split, with what several attacks need to know of them.

    Attributes:
        embeddings: (N, D), unit length for metrics N and C.
        labels: (N,) int64.
        metric: N, E or C.
        images: gives the images (b, C, H, W) at positions (b,), for another network to embed;
            None where they are not at hand.
    """

    embeddings: torch.Tensor
    labels: torch.Tensor
    metric: Metric
    _shared: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    images: Callable[[torch.Tensor], torch.Tensor] | None = field(
        default=None, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        n = len(self.embeddings)
        if self.embeddings.ndim != 2 or self.labels.shape != (n,):
            raise UserError(
                f"a gallery needs (N, D) embeddings and N labels, got "
                f"{tuple(self.embeddings.shape)} and {tuple(self.labels.shape)}"
            )
        if not self.embeddings.isfinite().all():
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

    def distances(self, queries: torch.Tensor) -> torch.Tensor:
        """(B, N) float64 distances of ``queries`` (B, D) to every item.

        float64 because a squared distance is a difference, and close items differ in its last
        bits; a part of the gallery at a time, so that it is never there twice.
        """
        parts = torch.split(self.embeddings, PART)
        wide = queries.double()
        return torch.cat([pairwise(wide, part.double(), self.metric) for part in parts], dim=1)

    def recall_at_1(self, e: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """R@1 (B,), 0 or 100, of queries with embeddings ``e`` (B, D), their own entries left out.

        NaN where a query's class has no other member.
        """
        x, labels = self.embeddings, self.labels
        return retrieval(e, index, x, labels, self.metric, recalls=(1,)).scores["R@1"]

    def nearest(self, count: int) -> torch.Tensor:
        """(N, count) int32 positions of each item's nearest other items, closest first. Kept.

        Raises:
            CellError: there are fewer than ``count`` others.
        """
        if count >= len(self):
            raise CellError(f"the nearest {count} others do not exist in a gallery of {len(self)}")
        known = self._shared.get("nearest")
        if known is None or known.shape[1] < count:
            size = min(max(count, len(self) // TOP_SHARE), len(self) - 1)
            # in one tensor: small results kept between large blocks leave the heap full of holes
            known = torch.empty(len(self), size, dtype=torch.int32, device=self.labels.device)
            for rows in self._blocks():
                known[rows] = self._others(rows).topk(size, dim=1, largest=False).indices.int()
            self._shared["nearest"] = known
        return known[:, :count]

    def neighbourhood(self, index: torch.Tensor, least: int) -> torch.Tensor:
        """(B, P) positions of the nearest 1% of each item at ``index`` (B,), at least ``least``."""
        size = max(len(self) // TOP_SHARE, least)
        return self.nearest(min(size, len(self) - 1))[index].long()

    def nearest_of_another_class(self) -> torch.Tensor:
        """(N,) position of each item's nearest item with another label. Kept.

        Raises:
            CellError: the gallery holds a single class.
        """
        return self._nearest_unlike("own label", self.labels)

    def nearest_unlike_the_top1(self) -> torch.Tensor:
        """(N,) position of each item's nearest item whose label differs from its top-1's. Kept."""
        top1 = self.nearest(1)[:, 0]
        return self._nearest_unlike("label of the top-1", self.labels[top1])

    def _nearest_unlike(self, name: str, reference: torch.Tensor) -> torch.Tensor:
        if bool((self.labels == self.labels[0]).all()):
            raise CellError("the gallery holds a single class: no item has another label")

        def search() -> torch.Tensor:
            blocks = []
            for rows in self._blocks():
                alike = reference[rows][:, None] == self.labels
                blocks.append(self._others(rows).masked_fill_(alike, torch.inf).argmin(1))
            return torch.cat(blocks)

        return self.shared(name, search)

    def _others(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, N) distances of the items at ``rows`` to all, inf to the item itself."""
        return self.distances(self.embeddings[rows]).scatter_(1, rows[:, None], torch.inf)

    def _blocks(self) -> list[torch.Tensor]:
        index = torch.arange(len(self), device=self.labels.device)
        return list(torch.split(index, max(1, BLOCK_CELLS // len(self))))
