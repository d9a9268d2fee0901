"""Single queries that were attacked, kept with all that a picture of them needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dmlbench.attacks.base import Attacked, Gallery

TOP = 5


@dataclass(frozen=True)
class AttackedQuery:
    """A query before and after an attack; tensors on the CPU.

    Attributes:
        index: its number: its position among the test images.
        clean: (C, H, W) its image, float32 in [0, 1].
        perturbed: (C, H, W) its image after the attack.
        top_before: positions of the 5 gallery items nearest to the clean query, nearest first;
            those that it never sees are left out.
        top_after: the same for the attacked query.
        before: column of the attack -> its value for the clean query.
        after: column of the attack -> its value for the attacked query.
        candidate: of an attack on candidates the gallery position of the perturbed one; the nearest
            items are queries then. Else None.
    """

    index: int
    clean: torch.Tensor
    perturbed: torch.Tensor
    top_before: tuple[int, ...]
    top_after: tuple[int, ...]
    before: dict[str, float]
    after: dict[str, float]
    candidate: int | None = None


def first_of_batch(
    embedding: Callable[[torch.Tensor], torch.Tensor],
    gallery: Gallery,
    index: torch.Tensor,
    images: torch.Tensor,
    attacked: Attacked,
    count: int,
    candidates: torch.Tensor | None,
) -> list[AttackedQuery]:
    """The first ``count`` queries of a batch that was attacked; all if it has fewer.

    Args:
        embedding: images -> embeddings of the network that was attacked.
        gallery: what they search.
        index: (B,) numbers of the batch.
        images: (B, C, H, W) the batch before the attack.
        attacked: the batch after it.
        count: how many.
        candidates: (B,) gallery positions of perturbed candidates; None: queries were perturbed.
    """
    index, perturbed = index[:count], attacked.perturbed.images[:count]
    if not len(index):
        return []
    after = embedding(perturbed)

    def top(e: torch.Tensor) -> list[tuple[int, ...]]:
        distances = gallery.distances_seen(e, index)
        shown = min(TOP, gallery.least_seen)
        return [tuple(row) for row in distances.topk(shown, dim=1, largest=False).indices.tolist()]

    tops = zip(top(gallery.queries[index]), top(after), strict=True)
    return [
        AttackedQuery(
            position,
            images[row].clone().cpu(),  # a view would keep the whole batch in memory
            perturbed[row].clone().cpu(),
            *nearest,
            {name: float(values[row]) for name, values in attacked.clean.items()},
            {name: float(values[row]) for name, values in attacked.outcomes.items()},
            None if candidates is None else int(candidates[row]),
        )
        for row, (position, nearest) in enumerate(zip(index.tolist(), tops, strict=True))
    ]
