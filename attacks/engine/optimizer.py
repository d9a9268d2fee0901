"""The base of optimisers, with all that they share: the ball, the active set, the checks.

The objective gives dL/de for the embeddings directly, so no graph is ever built over the gallery.

A sample whose dL/de is zero is done: PGD's sign(0) = 0 leaves it where it is, in this step and
therefore in every later one, and APGD keeps its best image. It leaves the batch. This is exact,
not a heuristic.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from dmlbench.attacks.engine.objective import Objective, RowWise
from dmlbench.common.errors import CellError
from dmlbench.common.lazy import torch

COMPACT_SHARE = 1 / 16  # of the live samples must have stopped before the batch is copied
RADIUS_TOLERANCE = 1e-6
GREY = 255  # the largest value of a pixel of 8 bits
GRID_TOLERANCE = 2e-4  # of a grey level: what float32 loses; 255 of RADIUS_TOLERANCE are more


@dataclass(frozen=True)
class Perturbed:
    """A batch after an optimiser.

    Attributes:
        images: adversarial images, of the shape of the clean ones.
        passes: forward-backward passes spent, counted a sample.
        full_passes: what they would have been without the active set.
        last_embeddings: (B, ..., D) of the last forward pass, which precedes the last step.
        flat_start: (B,) bool, true where the input gradient was zero everywhere at the first step
            (a saturated loss, or a network that masks its gradient).
    """

    images: torch.Tensor
    passes: int
    full_passes: int
    last_embeddings: torch.Tensor
    flat_start: torch.Tensor

    def replaced(self, rows: torch.Tensor, other: Perturbed) -> Perturbed:
        """With the images of the samples ``rows`` (b,) from ``other``, whose cost is added.

        ``full_passes`` and ``flat_start`` stay as they are.
        """
        return dataclasses.replace(
            self,
            images=self.images.index_copy(0, rows, other.images),
            last_embeddings=self.last_embeddings.index_copy(0, rows, other.last_embeddings),
            passes=self.passes + other.passes,
        )


@dataclass(frozen=True)
class Ball(RowWise):
    """The images within eps of a clean one in every pixel, and in [0, 1]: ``low`` to ``high``."""

    low: torch.Tensor
    high: torch.Tensor

    @classmethod
    def around(cls, clean: torch.Tensor, eps: float | torch.Tensor) -> Ball:
        """The balls around the images ``clean`` (B, ...), of one radius or of (B, 1, ...)."""
        return cls((clean - eps).clamp_(min=0), (clean + eps).clamp_(max=1))

    def project_(self, x: torch.Tensor) -> torch.Tensor:
        """``x``, moved in place to the nearest images in the ball."""
        torch.maximum(x, self.low, out=x)
        return torch.minimum(x, self.high, out=x)

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """The nearest images in the ball whose pixels are k/255, k whole: what 8 bits can hold.

        A pixel that would leave the ball takes the last k/255 inside it. There is one if the
        clean image has 8 bits.
        """
        least = (GREY * self.low - GRID_TOLERANCE).ceil_()
        most = (GREY * self.high + GRID_TOLERANCE).floor_()
        return torch.minimum(torch.maximum((GREY * x).round_(), least), most).div_(GREY)


@dataclass(frozen=True)
class Iterate(RowWise):
    """The samples that are still in the batch, between two steps.

    Attributes:
        x: images (b, ..., C, H, W), where loss and gradient are taken next.
        ball: what ``x`` must stay in.
    """

    x: torch.Tensor
    ball: Ball

    @property
    def result(self) -> torch.Tensor:
        """The images that are handed back if the search ends here."""
        return self.x


IterateT = TypeVar("IterateT", bound=Iterate)


class Optimizer(abc.ABC, Generic[IterateT]):
    """Minimises an objective over the images in an L-infinity ball.

    Attributes:
        eps: radius of the ball, in [0, 1] pixel space; one for all, or (B,) for each sample.
        steps: number of steps, one forward-backward pass each.
        active_set: let samples that are done leave the batch.
        bits: 8: the network is shown the images rounded to 8 bits (``Ball.rounded``), and those
            are the result; the search goes on from the images before rounding, so that steps of
            less than a grey level add up. 32: the images as they are.
        judges_last: one more forward pass judges the images after the last step.
    """

    judges_last: ClassVar[bool] = False

    eps: float | torch.Tensor
    steps: int
    active_set: bool
    bits: int

    @abc.abstractmethod
    def begin(self, x: torch.Tensor, ball: Ball) -> IterateT:
        """The state before the first step, at the images ``x``."""

    @abc.abstractmethod
    def step(
        self, now: IterateT, loss: torch.Tensor, dx: torch.Tensor, live: torch.Tensor, number: int
    ) -> IterateT:
        """The state after step ``number`` (0, 1, ...).

        Args:
            now: the state before; its tensors, and ``dx``, may be overwritten.
            loss: (b,) at ``now.x``.
            dx: gradient of the losses in ``now.x``; zero for a sample that is done.
            live: (b,) bool, false for a sample whose dL/de is zero.
            number: of the step.
        """

    def judge(self, now: IterateT, loss: torch.Tensor) -> IterateT:
        """The state at the end, if ``judges_last``; ``loss`` (b,) is that of ``now.x``."""
        return now

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
        ball = Ball.around(clean, self._a_sample(self.eps, clean))
        x = clean.clone() if start is None else ball.project_(start.clone())
        now = self.begin(x, ball)
        result, rows = torch.empty_like(clean), torch.arange(len(clean), device=clean.device)
        passes, finite = 0, torch.ones((), dtype=torch.bool, device=clean.device)
        last, flat = clean.new_empty(0), torch.zeros_like(rows, dtype=torch.bool)
        for number in range(self.steps):
            if not len(rows):
                break
            passes += len(rows)
            x = self._shown(now.x, now.ball).detach().requires_grad_(True)
            e = embed(x)
            loss, de = objective.value_and_grad(e.detach(), number)
            (dx,) = torch.autograd.grad(e, x, de.to(e.dtype))
            finite &= loss.isfinite().all() & dx.isfinite().all()
            e = e.detach()
            if number == 0:
                last, flat = torch.empty_like(e), ~dx.flatten(1).any(dim=1)
            live = de.flatten(1).any(dim=1)
            now = self.step(now, loss, dx, live, number)
            if not self.active_set or number == self.steps - 1:
                last[rows] = e
                continue
            stopped = len(rows) - int(live.sum())
            if stopped and stopped >= COMPACT_SHARE * len(rows):
                result[rows], last[rows] = self._shown(now.result, now.ball), e
                keep = live.nonzero()[:, 0]
                objective, now, rows = objective.take(keep), now.take(keep), rows[keep]
        if self.judges_last and len(rows):
            with torch.no_grad():
                loss, _ = objective.value_and_grad(embed(self._shown(now.x, now.ball)), self.steps)
            finite &= loss.isfinite().all()
            now = self.judge(now, loss)
        result[rows] = self._shown(now.result, now.ball)
        if not finite:
            raise CellError(
                f"the loss or its gradient is not finite within {self.steps} "
                f"{type(self).__name__} steps"
            )
        self.verify(clean, result)
        return Perturbed(result, passes, len(clean) * self.steps, last, flat)

    def verify(self, clean: torch.Tensor, adversarial: torch.Tensor) -> None:
        """CellError unless ``adversarial`` is within eps + 1e-6 of ``clean`` and in [0, 1]."""
        moved, eps = (adversarial - clean).abs(), self._a_sample(self.eps, clean)
        inside = bool(((adversarial >= 0) & (adversarial <= 1)).all())
        if not inside or not bool((moved <= eps + RADIUS_TOLERANCE).all()):
            raise CellError(
                f"the perturbation has radius {float(moved.max()):.6g} "
                f"(eps {float(torch.as_tensor(eps).max()):.6g}), "
                f"{'inside' if inside else 'outside'} [0, 1]"
            )

    def _shown(self, x: torch.Tensor, ball: Ball) -> torch.Tensor:
        """The images that the network sees in the place of ``x``: rounded if ``bits`` is 8."""
        return ball.rounded(x) if self.bits == 8 else x

    @staticmethod
    def _a_sample(value: float | torch.Tensor, images: torch.Tensor) -> float | torch.Tensor:
        """A number as it is, and (B,) as (B, 1, ...) to go with ``images`` (B, ...)."""
        if isinstance(value, float | int):
            return value
        return value.to(images).view(-1, *[1] * (images.ndim - 1))
