"""The reading of a ranked list: the items of the query's class ahead of those of other classes."""

from __future__ import annotations

from dataclasses import dataclass

from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.common.lazy import torch
from dmlbench.metrics.retrieval import class_members

OTHERS = 10  # items of other classes down to which the list is read


@dataclass(frozen=True)
class RankedLists:
    """The lists of a gallery as a user sees them: the order of the items and their classes.

    Attributes:
        gallery: the items.
        members: (classes, largest class) positions of the items of each class, -1 for none.
        norms: (N,) squared norms of the embeddings.
    """

    gallery: Gallery
    members: torch.Tensor
    norms: torch.Tensor

    @classmethod
    def of(cls, gallery: Gallery, labels: torch.Tensor) -> RankedLists:
        """The lists where ``labels`` (N,) are the classes of the items, numbered from 0."""
        return cls(gallery, class_members(labels), gallery.embeddings.square().sum(1))

    def own_ahead(self, e: torch.Tensor, index: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Count the items of the own class ahead of each of the first items of other classes.

        Only comparisons of distances within a list are used, so any distance that gives the same
        order gives the same counts.

        Args:
            e: (B, D) embeddings of the queries.
            index: (B,) their own entries in the gallery, which no list shows.
            own: (B,) the classes of the queries.

        Returns:
            (B, 10) int64, fewer columns in a smaller gallery. Where there is no such item of
            another class it counts as the last of the list; -1 where the class has no other item.
        """
        d = self._order(e).scatter_(1, index[:, None], torch.inf)
        same = self.members[own]
        same = torch.where(same < 0, index[:, None], same)  # which is infinitely far
        mine = d.gather(1, same).sort(dim=1).values
        d.scatter_(1, same, torch.inf)
        others = d.topk(min(OTHERS, d.shape[1]), dim=1, largest=False).values
        ahead = torch.searchsorted(mine, others.contiguous())
        return ahead.masked_fill(mine[:, :1].isinf(), -1)

    def _order(self, e: torch.Tensor) -> torch.Tensor:
        """(B, N) numbers in the order of the distances of ``e`` (B, D) to the items.

        As ``embed`` does, so that the last bit of a row does not depend on the batch.
        """
        from dmlbench.compute.embedding import embed

        x = self.gallery.embeddings
        if self.gallery.metric == "C":
            return embed(lambda rows: -rows @ x.T, e)
        return embed(lambda rows: torch.addmm(self.norms, rows, x.T, alpha=-2), e)
