"""The base of optimizers, with all that they share: the active set, the checks.

The objective gives dL/de for the embeddings directly, so no graph is ever built over the gallery.

A sample whose dL/de is zero is done: PGD leaves it where it is, as a step has the direction 0, in
this step and therefore in every later one, and APGD keeps its best image. It leaves the batch. This
changes no result, except of a randomised network: a gradient that is zero in all draws of a step
need not be in those of the next one, and a smaller batch draws other numbers.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from dmlbench.attacks.engine.ball import BALLS, Ball
from dmlbench.attacks.engine.objective import Objective, RowWise
from dmlbench.common.errors import CellError
from dmlbench.common.lazy import torch

COMPACT_SHARE = 1 / 16  # of the live samples must have stopped before the batch is copied


@dataclass(frozen=True)
class Perturbed:
    """A batch after an optimizer.

    Attributes:
        images: adversarial images, of the shape of the clean ones.
        passes: forward-backward passes spent, counted per sample; each of several draws is one.
        full_passes: what they would have been without the active set.
        last_embeddings: (B, ..., D) of the last forward pass, which precedes the last step.
        flat_start: (B,) bool, true where at the first step dL/de was not zero and dL/dx was: the
            network hides its gradient. Where dL/de is zero the query is broken already.
        forward_passes: passes without a backward one, of searches that take no gradient.
        full_forward_passes: what they would have been had no query left.
    """

    images: torch.Tensor
    passes: int
    full_passes: int
    last_embeddings: torch.Tensor
    flat_start: torch.Tensor
    forward_passes: int = field(default=0, kw_only=True)
    full_forward_passes: int = field(default=0, kw_only=True)

    def replaced(self, rows: torch.Tensor, other: Perturbed) -> Perturbed:
        """With the images of the samples ``rows`` (b,) from ``other``, whose cost is added.

        The full passes and ``flat_start`` stay as they are.
        """
        return dataclasses.replace(
            self,
            images=self.images.index_copy(0, rows, other.images),
            last_embeddings=self.last_embeddings.index_copy(0, rows, other.last_embeddings),
            passes=self.passes + other.passes,
            forward_passes=self.forward_passes + other.forward_passes,
        )


class Search(Protocol):
    """A search for the images in a ball that minimise an objective."""

    def run(
        self,
        embed: Callable[[torch.Tensor], torch.Tensor],
        clean: torch.Tensor,
        objective: Any,
        start: torch.Tensor | None = None,
    ) -> Perturbed:
        """Search around ``clean`` from ``start`` (``Optimizer.run``, ``BlackBox.run``)."""
        ...


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
    """Minimises an objective over the images in a ball.

    Attributes:
        eps: radius of the ball, in [0, 1] pixel space; one for all, or (B,) for each sample.
        steps: number of steps, one forward-backward pass each.
        active_set: let samples that are done leave the batch.
        draws: passes in each step, over which losses and gradients are the means; more than one for
            a network that is randomised (expectation over transformation, Athalye et al., ICML
            2018). A sample is done where dL/de is zero in all of them.
        bits: 8: the network is shown the images rounded to 8 bits (``Ball.rounded``), and those
            are the result; the search goes on from the images before rounding, so that steps of
            less than a grey level add up. 32: the images as they are.
        norm: of the ball, a key of ``ball.BALLS``.
        judges_last: one more forward pass judges the images after the last step.
    """

    judges_last: ClassVar[bool] = False

    eps: float | torch.Tensor
    steps: int
    active_set: bool
    draws: int
    bits: int
    norm: str

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
        known: torch.Tensor | None = None,
    ) -> Perturbed:
        """Minimise ``objective`` around ``clean`` (B, ..., C, H, W), in [0, 1].

        Args:
            embed: images (b, ...) -> embeddings (b, ..., D), differentiable in the images;
                parameters frozen, eval mode.
            clean: the centre of the ball.
            objective: the loss, one sample a row of ``clean``.
            start: where to begin, projected onto the ball first; the clean images by default.
            known: (B, ..., D) embeddings of the clean images, where they are known and ``start`` is
                not given. A sample that is done there takes no pass at all.

        Raises:
            CellError: an embedding, a loss or a gradient is not finite (sign(NaN) = 0 freezes an
                image silently).
        """
        ball = BALLS[self.norm].around(clean, self.eps)
        x = clean.clone() if start is None else ball.project_(start.clone())
        now = self.begin(x, ball)
        result, rows = torch.empty_like(clean), torch.arange(len(clean), device=clean.device)
        passes, finite = 0, torch.ones((), dtype=torch.bool, device=clean.device)
        last, flat = clean.new_empty(0), torch.zeros_like(rows, dtype=torch.bool)
        known = known if self.active_set else None
        if known is not None:
            _, de = objective.value_and_grad(known, 0)
            rows = de.flatten(1).any(dim=1).nonzero()[:, 0]
            result, last = clean.clone(), known.clone()
            objective, now = objective.take(rows), now.take(rows)
        for number in range(self.steps):
            if not len(rows):
                break
            passes += len(rows) * self.draws
            e, loss, live, dx = self.slope(embed, self.shown(now.x, now.ball), objective, number)
            finite &= e.isfinite().all() & loss.isfinite().all() & dx.isfinite().all()
            if number == 0:
                last = e.new_empty(len(clean), *e.shape[1:]) if known is None else last
                flat[rows] = live & ~dx.flatten(1).any(dim=1)
            now = self.step(now, loss, dx, live, number)
            if not self.active_set or number == self.steps - 1:
                last[rows] = e
                continue
            stopped = len(rows) - int(live.sum())
            if stopped and stopped >= COMPACT_SHARE * len(rows):
                result[rows], last[rows] = self.shown(now.result, now.ball), e
                keep = live.nonzero()[:, 0]
                objective, now, rows = objective.take(keep), now.take(keep), rows[keep]
        if self.judges_last and len(rows):
            with torch.no_grad():
                shown = self.shown(now.x, now.ball)
                loss = expectation(
                    self.draws, lambda: objective.value_and_grad(embed(shown), self.steps)[0]
                )
            finite &= loss.isfinite().all()
            now = self.judge(now, loss)
        result[rows] = self.shown(now.result, now.ball)
        if not finite:
            raise CellError(
                f"an embedding, the loss or its gradient is not finite within {self.steps} "
                f"{type(self).__name__} steps"
            )
        self.verify(clean, result)
        return Perturbed(result, passes, len(clean) * self.steps * self.draws, last, flat)

    def slope(
        self,
        embed: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        objective: Objective,
        number: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embeddings of the last draw, mean losses, where any dL/de is not zero, mean dL/dx."""
        parts = []
        for _ in range(self.draws):
            x = images.detach().requires_grad_(True)
            e = embed(x)
            loss, de = objective.value_and_grad(e.detach(), number)
            parts.append((loss, de.flatten(1).any(dim=1), through(e, x, de)))
        if len(parts) == 1:
            return e.detach(), *parts[0]
        losses, live, dx = (torch.stack(part) for part in zip(*parts, strict=True))
        return e.detach(), mean_over_draws(losses), live.any(0), dx.mean(0)

    def verify(self, clean: torch.Tensor, adversarial: torch.Tensor) -> None:
        """CellError unless ``adversarial`` is in the ball around ``clean`` (``Ball.check``)."""
        BALLS[self.norm].check(clean, adversarial, self.eps)

    def shown(self, x: torch.Tensor, ball: Ball) -> torch.Tensor:
        """The images that the network sees in the place of ``x``: rounded if ``bits`` is 8."""
        return ball.rounded(x) if self.bits == 8 else x


def expectation(draws: int, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The mean of what ``make`` gives in so many draws of a randomised network."""
    if draws == 1:
        return make()
    return mean_over_draws(torch.stack([make() for _ in range(draws)]))


def mean_over_draws(found: torch.Tensor) -> torch.Tensor:
    """The mean over the first dimension.

    A broken query may have the lowest loss there is. A sum of two of them overflows, and so may
    that of their shares, by rounding; but no mean is below the least value.
    """
    return (found / len(found)).sum(0).maximum(found.amin(0))


def through(e: torch.Tensor, x: torch.Tensor, de: torch.Tensor) -> torch.Tensor:
    """dL/dx from dL/de at ``e``; zero where the network has cut the way from ``x`` to ``e``."""
    if not e.requires_grad:
        return torch.zeros_like(x)
    (dx,) = torch.autograd.grad(e, x, de.to(e.dtype), allow_unused=True)
    return torch.zeros_like(x) if dx is None else dx
