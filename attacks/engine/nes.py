"""PGD along gradients that are estimated from losses (NES: Ilyas et al., ICML 2018).

At the image x, with n / 2 normal vectors u_k,

    g = sum_k (L(x_k+) - L(x_k-)) (x_k+ - x_k-),      x_k+- = Proj(x +- clip(sigma u_k, +-c))
    m <- momentum m + g,      x <- Proj(x - alpha sign(m))

With ``signs`` the u_k are random signs, as in SPSA (Uesato et al., ICML 2018). c is ``most``, which
bounds nothing unless it is given.

A step takes n + 1 passes: x itself is shown too. The images of a pair are projected onto the ball
before they are shown, and the estimate uses what was shown, so each of them counts as an attempt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from dmlbench.attacks.engine.black_box import BlackBox, Breakable, Known
from dmlbench.attacks.engine.targets import coarse, normal
from dmlbench.common.lazy import torch


@dataclass(frozen=True)
class Estimates(Known):
    """The state between two passes.

    Attributes:
        x: (b, C, H, W) the image that the gradient is estimated at.
        first: the first image of the pair, and ``first_loss`` (b,) its loss.
        total: the sum over the pairs so far.
        momentum: m.
        index: (b,) positions of the queries.
    """

    x: torch.Tensor
    first: torch.Tensor
    first_loss: torch.Tensor
    total: torch.Tensor
    momentum: torch.Tensor
    index: torch.Tensor
    seed: int


@dataclass(frozen=True)
class NES(BlackBox[Estimates]):
    """The search: steps of ``alpha`` along estimates from ``samples`` images (an even number).

    ``signs``: directions are random signs in the place of normal numbers. ``side``: the most
    numbers that a direction has on each side of an image (``targets.coarse``); None: one a pixel.
    """

    alpha: float
    samples: int
    sigma: float
    momentum: float
    most: float = field(default=math.inf, kw_only=True)
    signs: bool = field(default=False, kw_only=True)
    side: int | None = field(default=None, kw_only=True)

    def begin(self, known: Known, objective: Breakable) -> Estimates:
        """At the clean image."""
        zero = torch.zeros_like(known.clean)
        return Estimates(
            **vars(known),
            x=known.clean.clone(),
            first=zero,
            first_loss=known.loss,
            total=zero,
            momentum=zero,
            index=objective.index,
            seed=objective.seed,
        )

    def propose(self, now: Estimates, number: int) -> torch.Tensor:
        """The image itself, then the pairs."""
        place = number % (self.samples + 1)
        if place == 0:
            return now.x
        pair = number if place % 2 else number - 1
        side = max(now.x.shape) if self.side is None else self.side
        u = coarse(normal, now.index, now.seed, f"nes {pair}", now.x, side)
        u = u.sign() if self.signs else u
        noise = (self.sigma * u).clamp(-self.most, self.most)
        return now.ball.project_(now.x + (noise if place % 2 else -noise))

    def learn(
        self, now: Estimates, shown: torch.Tensor, loss: torch.Tensor, number: int
    ) -> Estimates:
        """Keep the first image of a pair; at the second one add to the estimate, or step."""
        place = number % (self.samples + 1)
        if place == 0:
            return now
        if place % 2:
            return replace(now, first=shown, first_loss=loss)
        slope = (now.first_loss - loss).to(shown.dtype).view(-1, 1, 1, 1)
        now = replace(now, total=now.total + slope * (now.first - shown))
        if place < self.samples:
            return now
        momentum = self.momentum * now.momentum + now.total
        x = now.ball.project_(now.x - self.alpha * momentum.sign())
        return replace(now, x=x, momentum=momentum, total=torch.zeros_like(now.total))
