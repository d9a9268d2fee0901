"""What an optimiser minimises: a loss of the embeddings, one value a sample."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Protocol, TypeVar

from dmlbench.common.lazy import torch

ObjectiveT = TypeVar("ObjectiveT", bound="Objective")
RowWiseT = TypeVar("RowWiseT", bound="RowWise")


class Objective(Protocol):
    """A loss of the embeddings of a batch, which an optimiser minimises for each sample.

    Each sample's loss must depend on that sample's embeddings alone. A sample whose gradient is
    zero is done: it leaves the batch.
    """

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (B,) and d loss / d e of the shape of ``e`` (B, ..., D), in step 0, 1, ..."""
        ...

    def take(self: ObjectiveT, rows: torch.Tensor) -> ObjectiveT:
        """The same objective for the samples at the positions ``rows`` (b,) only."""
        ...


@dataclass(frozen=True)
class RowWise:
    """Base of dataclasses that hold something for each sample of a batch.

    A field that is a tensor has one row a sample; a field that is itself row-wise is taken from
    too; every other field belongs to the whole batch.
    """

    def take(self: RowWiseT, rows: torch.Tensor) -> RowWiseT:
        """The same for the samples at the positions ``rows`` (b,) only."""
        kept: dict[str, torch.Tensor | RowWise] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                kept[field.name] = value[rows]
            elif isinstance(value, RowWise):
                kept[field.name] = value.take(rows)
        return dataclasses.replace(self, **kept)
