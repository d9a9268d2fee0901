"""Projected gradient descent in an L-infinity ball, with an exact active set.

    x <- Proj(x - alpha * sign(dL/dx)),  Proj onto [x0 - eps, x0 + eps] and [0, 1]

The objective gives dL/de for the embeddings directly,
so no graph is ever built over the gallery.

A sample whose dL/de is zero gets sign(0) = 0 in this step, stays where it is, and therefore
in every later one: it leaves the batch. This is exact, not a heuristic.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from dmlbench.common.errors import CellError
from dmlbench.common.lazy import torch

COMPACT_SHARE = 1 / 16  # of the live samples must have stopped before the batch is copied
RADIUS_TOLERANCE = 1e-6

ObjectiveT = TypeVar("ObjectiveT", bound="Objective")


class Objective(Protocol):
    """A loss over embeddings that PGD minimises, a sample at a time.

    Each sample's loss must depend on that sample's embeddings alone.
    """

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (B,) and d loss / d e of the shape of ``e`` (B, ..., D)."""
        ...

    def take(self: ObjectiveT, rows: torch.Tensor) -> ObjectiveT:
        """The same objective for the samples ``rows`` (b,) only."""
        ...


RowWiseT = TypeVar("RowWiseT", bound="RowWise")


@dataclass(frozen=True)
class RowWise:
    """Mixin of objectives whose fields that are tensors, or row-wise, have one row a sample."""

    def take(self: RowWiseT, rows: torch.Tensor) -> RowWiseT:
        """The same objective for the samples ``rows`` only."""
        kept: dict[str, torch.Tensor | RowWise] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                kept[field.name] = value[rows]
            elif isinstance(value, RowWise):
                kept[field.name] = value.take(rows)
        return dataclasses.replace(self, **kept)


@dataclass(frozen=True)
class Perturbed:
    """What PGD made of a batch.

    Attributes:
        images: adversarial images, of the shape of the clean ones.
        passes: forward-backward passes spent, counted a sample.
        full_passes: what they would have been without the active set.
        last_embeddings: (B, ..., D) of the last forward pass, which precedes the last step.
        flat_start: (B,) bool, whether the input gradient was zero everywhere at the first step
            (a saturated loss, or a network that masks its gradient).
    """

    images: torch.Tensor
    passes: int
    full_passes: int
    last_embeddings: torch.Tensor
    flat_start: torch.Tensor


@dataclass(frozen=True)
class PGD:
    """``steps`` sign steps of ``alpha`` in a ball of radius ``eps`` from the clean image.

    With steps = 1 and alpha = eps this is FGSM.
    """

    eps: float
    alpha: float
    steps: int
    active_set: bool = True

    def run(
        self,
        embed: Callable[[torch.Tensor], torch.Tensor],
        clean: torch.Tensor,
        objective: Objective,
        start: torch.Tensor | None = None,
    ) -> Perturbed:
        """Minimise ``objective`` around ``clean`` (B, ..., C, H, W), in [0, 1].

        Args:
            embed: images (b, ...) -> embeddings (b, ..., D), differentiable in the images;
                parameters frozen, eval mode.
            clean: the centre of the ball.
            objective: the loss, one sample a row of ``clean``.
            start: where to begin, projected onto the ball first; the clean images by default.

        Raises:
            CellError: a loss or gradient is not finite (sign(NaN) = 0 freezes an image silently).
        """
        low, high = (clean - self.eps).clamp_(min=0), (clean + self.eps).clamp_(max=1)
        x = clean.clone() if start is None else torch.minimum(torch.maximum(start, low), high)
        result, rows = torch.empty_like(clean), torch.arange(len(clean), device=clean.device)
        passes, finite = 0, torch.ones((), dtype=torch.bool, device=clean.device)
        last, flat = clean.new_empty(0), torch.zeros_like(rows, dtype=torch.bool)
        for step in range(self.steps):
            if not len(rows):
                break
            passes += len(rows)
            x.requires_grad_(True)
            e = embed(x)
            loss, de = objective.value_and_grad(e.detach(), step)
            finite &= loss.isfinite().all()
            (dx,) = torch.autograd.grad(e, x, de.to(e.dtype))
            finite &= dx.isfinite().all()
            x, e = x.detach(), e.detach()
            if step == 0:
                last, flat = torch.empty_like(e), ~dx.flatten(1).any(dim=1)
            x.sub_(dx.sign_(), alpha=self.alpha)
            torch.maximum(x, low, out=x)
            torch.minimum(x, high, out=x)
            if not self.active_set or step == self.steps - 1:
                last[rows] = e
                continue
            live = de.flatten(1).any(dim=1)
            stopped = len(rows) - int(live.sum())
            if stopped and stopped >= COMPACT_SHARE * len(rows):
                result[rows], last[rows] = x, e
                keep = live.nonzero()[:, 0]
                objective, rows = objective.take(keep), rows[keep]
                x, low, high = x[keep], low[keep], high[keep]
        result[rows] = x
        if not finite:
            raise CellError(f"the loss or its gradient is not finite within {self.steps} PGD steps")
        self.verify(clean, result)
        return Perturbed(result, passes, len(clean) * self.steps, last, flat)

    def verify(self, clean: torch.Tensor, adversarial: torch.Tensor) -> None:
        """CellError unless ``adversarial`` is within eps + 1e-6 of ``clean`` and in [0, 1]."""
        radius = float((adversarial - clean).abs().max()) if clean.numel() else 0.0
        inside = bool(((adversarial >= 0) & (adversarial <= 1)).all())
        if not inside or not radius <= self.eps + RADIUS_TOLERANCE:
            raise CellError(
                f"the perturbation has radius {radius:.6g} (eps {self.eps:.6g}), "
                f"{'inside' if inside else 'outside'} [0, 1]"
            )
