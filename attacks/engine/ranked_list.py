"""The reading of a ranked list: the answers to a query ahead of the other items."""

from __future__ import annotations

from dataclasses import dataclass

from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.common.lazy import torch
from dmlbench.metrics.distance import squared_norms
from dmlbench.metrics.relevance import put

OTHERS = 10  # other items, down to which the list is read


@dataclass(frozen=True)
class RankedLists:
    """The lists of a gallery as a user sees them: the order of the items, and which are answers.

    Attributes:
        gallery: the items.
        norms: (N,) squared norms of the embeddings.
    """

    gallery: Gallery
    norms: torch.Tensor

    @classmethod
    def of(cls, gallery: Gallery) -> RankedLists:
        """The lists of a gallery."""
        return cls(gallery, squared_norms(gallery.embeddings))

    def own_ahead(
        self, e: torch.Tensor, index: torch.Tensor, answers: torch.Tensor
    ) -> torch.Tensor:
        """Count the answers ahead of each of the first other items.

        Only comparisons of distances within a list are used, so any distance that gives the same
        order gives the same counts.

        Args:
            e: (B, D) embeddings of the queries.
            index: (B,) their numbers.
            answers: (B, P) positions of their answers, -1 for none.

        Returns:
            (B, 10) int64, fewer columns in a smaller gallery. Where there is no such other item it
            counts as the last of the list; -1 where a query has no answer.
        """
        d = self._order(e)
        self.gallery.relevance.excluded.put(d, index, torch.inf)
        mine = d.gather(1, answers.clamp(min=0)).masked_fill_(answers < 0, torch.inf)
        mine = mine.sort(dim=1).values
        put(d, answers, torch.inf)
        others = d.topk(min(OTHERS, d.shape[1]), dim=1, largest=False).values
        ahead = torch.searchsorted(mine, others.contiguous())
        return ahead.masked_fill(mine[:, :1].isinf(), -1)

    def first(self, e: torch.Tensor, index: torch.Tensor, count: int) -> torch.Tensor:
        """(B, count) positions of the first items of the lists of ``e`` (B, D), closest first.

        Args:
            e: embeddings of the queries.
            index: (B,) their numbers.
            count: at most the number of items that each of them sees.
        """
        d = self._order(e)
        self.gallery.relevance.excluded.put(d, index, torch.inf)
        return d.topk(count, dim=1, largest=False).indices

    def _order(self, e: torch.Tensor) -> torch.Tensor:
        """(B, N) numbers in the order of the distances of ``e`` (B, D) to the items.

        By ``embed``, so that the last bit of a row does not depend on the batch. On a CPU it takes
        embeddings of 96 numbers and more row by row. One product for all rows (``embed_together``)
        is several times as fast in a gallery of 10,000, but its last bits are others, by which
        items that are equally near change places: that is a new version of each attack on lists.
        """
        from dmlbench.compute.embedding import embed

        x = self.gallery.embeddings
        if self.gallery.metric == "C":
            return embed(lambda rows: -rows @ x.T, e)
        return embed(lambda rows: torch.addmm(self.norms, rows, x.T, alpha=-2), e)
