"""Objectives: losses of the embeddings, one value a sample, which an optimizer minimises."""

from __future__ import annotations

import abc
import dataclasses
from dataclasses import dataclass
from typing import Protocol, TypeVar

from dmlbench.common.errors import CellError
from dmlbench.common.lazy import torch

ObjectiveT = TypeVar("ObjectiveT", bound="Objective")
RowWiseT = TypeVar("RowWiseT", bound="RowWise")


class Objective(Protocol):
    """A loss of the embeddings of a batch, which an optimizer minimises for each sample.

    Each sample's loss must depend on that sample's embeddings alone. A sample whose gradient is
    zero is done: it leaves the batch.
    """

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (B,) and d loss / d e of the shape of ``e`` (B, ..., D), in step 0, 1, ..."""
        ...

    def take(self: ObjectiveT, rows: torch.Tensor) -> ObjectiveT:
        """The same objective for the samples at the positions ``rows`` (b,) only."""
        ...


def broken(loss: torch.Tensor) -> torch.Tensor:
    """(B,) true where the loss is the lowest number there is: its query is broken."""
    return loss == torch.finfo(loss.dtype).min


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


@dataclass(frozen=True)
class AutogradLoss(RowWise, abc.ABC):
    """Base of objectives that state their loss only: autograd gives the gradient.

    The graph reaches from the loss back to the embeddings (B, D) and no further, which is cheap
    unless the loss keeps something for every gallery item. A sample leaves the batch where its
    gradient is exactly zero, as that of max(0, ...) below zero (``relu``).
    """

    @abc.abstractmethod
    def loss(self, e: torch.Tensor, step: int) -> torch.Tensor:
        """Losses (B,) by differentiable operations on ``e`` (B, ..., D), each of its own row."""

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (B,) and d loss / d e of the shape of ``e``.

        Raises:
            CellError: the loss is not of shape (B,), or does not depend on ``e``.
        """
        e = e.detach().requires_grad_(True)
        with torch.enable_grad():
            loss = self.loss(e, step)
        name = type(self).__name__
        if loss.shape != e.shape[:1]:
            raise CellError(f"{name}.loss must give {len(e)} losses, got {tuple(loss.shape)}")
        if not loss.requires_grad:
            raise CellError(f"{name}.loss does not depend on e by differentiable operations")
        (gradient,) = torch.autograd.grad(loss, e, torch.ones_like(loss))
        return loss.detach(), gradient
