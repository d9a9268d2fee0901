"""Retrieval with a query that was moved: R@1, R@2, R@4, R@8, and the distance it was moved.

These are columns beside an attack's own, for every attack that perturbs a query and for images
that were handed in. They follow from the perturbed images alone and change no other number, so
they are no part of an identity.
"""

from __future__ import annotations

from collections.abc import Collection

from dmlbench.attacks.base import Attack, Column, Gallery
from dmlbench.common.lazy import torch
from dmlbench.metrics.distance import BOUNDS, rowwise
from dmlbench.metrics.retrieval import retrieval

CUTOFFS = (1, 2, 4, 8)  # K of the columns R@K
MOVED = "Distance that the query's embedding is moved; at most 2 under metric N."


def columns(prefix: str, taken: Collection[str] = ()) -> tuple[Column, ...]:
    """The columns ``prefix:R@1`` to ``prefix:R@8`` and ``prefix:D``, without those in ``taken``."""
    found = [
        Column(f"{prefix}:R@{k}", "%", "higher", f"R@{k} of the moved query, in percent.")
        for k in CUTOFFS
    ]
    found.append(Column(f"{prefix}:D", "", "lower", MOVED, BOUNDS))
    return tuple(column for column in found if column.name not in taken)


def columns_of(attack: type[Attack]) -> tuple[Column, ...]:
    """Those of an attack, ``LTM:R@1``, ...; empty if it does not perturb a query.

    The prefix is the name of its first column, up to a colon.
    """
    if attack.perturbs != "query":
        return ()
    own = [column.name for column in attack.columns]
    return columns(own[0].partition(":")[0], own)


def recall_and_map(name: str) -> tuple[Column, Column]:
    """The columns ``name:R@1`` and ``name:mAP`` of an attack that spoils the whole ranking."""
    recall = f"R@1 of the queries after {name}, in percent."
    return (
        Column(f"{name}:R@1", "%", "higher", recall),
        Column(f"{name}:mAP", "%", "higher", f"mAP of the queries after {name}, in percent."),
    )


def outcomes(
    wanted: Collection[Column], e: torch.Tensor, index: torch.Tensor, gallery: Gallery
) -> dict[str, torch.Tensor]:
    """Name of a column -> (B,) float64 values; NaN for R@K, mAP where a query has no positive.

    Args:
        wanted: columns, as ``columns`` or ``recall_and_map`` makes them; nothing is computed if
            there are none.
        e: (B, D) embeddings of the queries.
        index: (B,) their numbers.
        gallery: clean embeddings.
    """
    if not wanted:
        return {}
    x, metric = gallery.embeddings, gallery.metric
    found = retrieval(e, index, x, gallery.relevance, metric, CUTOFFS).scores
    found["D"] = rowwise(e, gallery.queries[index], metric).double()
    return {column.name: found[column.name.rpartition(":")[2]] for column in wanted}
