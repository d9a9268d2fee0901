"""The base of searches without a gradient: all that they learn of an image is its loss.

One image a forward pass is shown to the network. The image of least loss is the result. A query
that is broken (its loss is the lowest number there is) leaves with the image that broke it.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from dmlbench.attacks.engine.ball import LInfBall
from dmlbench.attacks.engine.objective import Objective, RowWise, broken
from dmlbench.attacks.engine.optimizer import Perturbed
from dmlbench.common.errors import CellError
from dmlbench.common.lazy import torch


class Breakable(Objective, Protocol):
    """An objective that says when a query is broken (``objective.broken``)."""

    @property
    def index(self) -> torch.Tensor:
        """(B,) positions of the queries in the test split."""
        ...

    @property
    def seed(self) -> int:
        """Seed of the cell; with ``index`` it decides every random number."""
        ...


@dataclass(frozen=True)
class Counted(Perturbed):
    """With the forward passes until each query was broken, (B,) int64; -1: it was not."""

    until: torch.Tensor


@dataclass(frozen=True)
class Known(RowWise):
    """The queries that are still searched, between two passes.

    Attributes:
        clean: (b, C, H, W) their images.
        ball: what an image that is shown must lie in.
        best: the image of least loss that was shown.
        loss: (b,) float64, its loss.
    """

    clean: torch.Tensor
    ball: LInfBall
    best: torch.Tensor
    loss: torch.Tensor


KnownT = TypeVar("KnownT", bound=Known)


@dataclass(frozen=True)
class BlackBox(abc.ABC, Generic[KnownT]):
    """A search in a ball of radius ``eps`` that takes at most ``budget`` forward passes per query.

    The ball is one in L-infinity. ``bits`` is 8 where images are rounded before they are shown
    (``Ball.rounded``), 32 where not.
    """

    eps: float
    budget: int
    bits: int = field(default=32, kw_only=True)

    @abc.abstractmethod
    def begin(self, known: Known, objective: Breakable) -> KnownT:
        """The state before the first pass."""

    @abc.abstractmethod
    def propose(self, now: KnownT, number: int) -> torch.Tensor:
        """The images (b, C, H, W) to show in pass ``number`` (0, 1, ...); all in the ball."""

    def learn(self, now: KnownT, shown: torch.Tensor, loss: torch.Tensor, number: int) -> KnownT:
        """The state after pass ``number``; ``now.best`` has taken ``loss`` (b,) in already."""
        return now

    def run(
        self,
        embed: Callable[[torch.Tensor], torch.Tensor],
        clean: torch.Tensor,
        objective: Breakable,
        start: torch.Tensor | None = None,
    ) -> Counted:
        """Search around ``clean`` (B, C, H, W) for images that break the queries.

        Args:
            embed: images (b, C, H, W) -> embeddings (b, D); no gradient is taken.
            clean: the centre of the ball.
            objective: its losses are all that the search sees.
            start: ignored.

        Raises:
            CellError: a loss is not finite.
        """
        ball = LInfBall.around(clean, self.eps)
        unknown = clean.new_full((len(clean),), torch.inf, dtype=torch.float64)
        now = self.begin(Known(clean, ball, clean.clone(), unknown), objective)
        result, rows = clean.clone(), torch.arange(len(clean), device=clean.device)
        until, last = torch.full_like(rows, -1), clean.new_empty(0)
        passes, finite = 0, torch.ones((), dtype=torch.bool, device=clean.device)
        for number in range(self.budget):
            if not len(rows):
                break
            shown = self.propose(now, number)
            if self.bits == 8:
                shown = now.ball.rounded(shown)
            with torch.no_grad():
                e = embed(shown)
                loss, _ = objective.value_and_grad(e, number)
            finite &= loss.isfinite().all()
            passes += len(rows)
            if number == 0:
                last = torch.empty_like(e)
            last[rows] = e
            loss, fell = loss.double(), broken(loss)
            better = loss < now.loss
            best = torch.where(better.view(-1, 1, 1, 1), shown, now.best)
            now = replace(now, best=best, loss=torch.where(better, loss, now.loss))
            if fell.any():
                result[rows[fell]], until[rows[fell]] = shown[fell], number + 1
                keep = (~fell).nonzero()[:, 0]
                now, objective, rows = now.take(keep), objective.take(keep), rows[keep]
                shown, loss = shown[keep], loss[keep]
            now = self.learn(now, shown, loss, number)
        result[rows] = now.best
        if not finite:
            raise CellError(f"a loss is not finite within {self.budget} forward passes")
        LInfBall.check(clean, result, self.eps)
        flat = torch.zeros_like(until, dtype=torch.bool)
        full = len(clean) * self.budget
        return Counted(
            *(result, 0, 0, last, flat, until), forward_passes=passes, full_forward_passes=full
        )
