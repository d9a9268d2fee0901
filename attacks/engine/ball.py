"""The ball of images around a clean one that an attack may return, in two norms.

    linf    |x' - x| <= eps in every pixel
    l2      |x' - x|_2 <= eps, the Euclidean length of the difference over all pixels of a sample

In both every pixel stays in [0, 1]. A length in L2 may exceed 1: the images of C x H x W pixels
lie at most sqrt(C H W) apart.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import ClassVar, Self

from dmlbench.attacks.engine.objective import RowWise
from dmlbench.attacks.engine.targets import normal, random_start, uniform
from dmlbench.common.errors import CellError
from dmlbench.common.lazy import torch

RADIUS_TOLERANCE = 1e-6
GREY = 255  # the largest value of a pixel of 8 bits
PIXEL_ROUNDING, EPS_ROUNDING = 1e-7, 5e-7  # of an L2 length: of each pixel, and of a radius
GRID_TOLERANCE = 2e-4  # of a grey level: what float32 loses; 255 of RADIUS_TOLERANCE are more


@dataclass(frozen=True)
class Ball(RowWise, abc.ABC):
    """The balls around the images of a batch."""

    random_places: ClassVar[str]  # what ``far`` returns, in words

    @classmethod
    @abc.abstractmethod
    def around(cls, clean: torch.Tensor, eps: float | torch.Tensor) -> Self:
        """The balls around the images ``clean`` (B, ...), of one radius or of one each, (B,)."""

    @abc.abstractmethod
    def project_(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` (B, ...), moved in place into the ball; images in the ball stay as they are."""

    @abc.abstractmethod
    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """Images near ``x`` in the ball whose pixels are k/255, k whole: what 8 bits can hold."""

    @staticmethod
    @abc.abstractmethod
    def direction(dx: torch.Tensor) -> torch.Tensor:
        """The steepest direction of size 1 for the gradients ``dx`` (B, ...); 0 where it is 0."""

    @staticmethod
    @abc.abstractmethod
    def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """(B,) distance of the images ``a`` from ``b`` (B, ...)."""

    @staticmethod
    @abc.abstractmethod
    def tolerance(images: torch.Tensor, eps: torch.Tensor) -> float | torch.Tensor:
        """The most that rounding adds to a distance of ``eps`` between such images (B, ...)."""

    @staticmethod
    @abc.abstractmethod
    def start(
        images: torch.Tensor, eps: float, index: torch.Tensor, seed: int, restart: int
    ) -> torch.Tensor:
        """Places drawn uniformly within ``eps`` of ``images`` (B, C, H, W), not clipped to [0, 1].

        Each follows from the seed, the restart and its query's number in ``index`` (B,) alone.
        """

    @classmethod
    @abc.abstractmethod
    def far(
        cls, images: torch.Tensor, eps: float, index: torch.Tensor, seed: int, number: int
    ) -> torch.Tensor:
        """Images at the full distance ``eps`` in random directions, clipped to [0, 1]."""

    @classmethod
    def check(
        cls, clean: torch.Tensor, adversarial: torch.Tensor, eps: float | torch.Tensor
    ) -> None:
        """CellError unless ``adversarial`` is within eps of ``clean``, and in [0, 1].

        ``eps`` is one number, or (B,) for each image; rounding is allowed for (``tolerance``).
        """
        moved, most = cls.distance(adversarial, clean), torch.as_tensor(eps, device=clean.device)
        inside = bool(((adversarial >= 0) & (adversarial <= 1)).all())
        if not inside or not bool((moved <= most + cls.tolerance(clean, most)).all()):
            raise CellError(
                f"the perturbation has radius {float(moved.max()):.6g} "
                f"(eps {float(most.max()):.6g}), {'inside' if inside else 'outside'} [0, 1]"
            )


@dataclass(frozen=True)
class LInfBall(Ball):
    """The images within eps of a clean one in every pixel, and in [0, 1]: ``low`` to ``high``."""

    random_places = "random sign patterns of size eps"

    low: torch.Tensor
    high: torch.Tensor

    @classmethod
    def around(cls, clean: torch.Tensor, eps: float | torch.Tensor) -> Self:
        """Each pixel has an interval."""
        eps = a_sample(eps, clean)
        return cls((clean - eps).clamp_(min=0), (clean + eps).clamp_(max=1))

    def project_(self, x: torch.Tensor) -> torch.Tensor:
        """``x``, moved in place to the nearest images in the ball."""
        torch.maximum(x, self.low, out=x)
        return torch.minimum(x, self.high, out=x)

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """The nearest such images in the ball.

        A pixel that would leave the ball takes the last k/255 inside it. There is one if the
        clean image has 8 bits.
        """
        least = (GREY * self.low - GRID_TOLERANCE).ceil_()
        most = (GREY * self.high + GRID_TOLERANCE).floor_()
        return torch.minimum(torch.maximum((GREY * x).round_(), least), most).div_(GREY)

    @staticmethod
    def direction(dx: torch.Tensor) -> torch.Tensor:
        """The sign in every pixel."""
        return dx.sign()

    @staticmethod
    def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The largest change of a pixel."""
        return (a - b).abs().flatten(1).amax(1)

    @staticmethod
    def tolerance(images: torch.Tensor, eps: torch.Tensor) -> float | torch.Tensor:
        """1e-6."""
        return RADIUS_TOLERANCE

    @staticmethod
    def start(
        images: torch.Tensor, eps: float, index: torch.Tensor, seed: int, restart: int
    ) -> torch.Tensor:
        """Noise that is uniform in [-eps, eps] in every pixel."""
        return random_start(images, eps, index, seed, restart)

    @classmethod
    def far(
        cls, images: torch.Tensor, eps: float, index: torch.Tensor, seed: int, number: int
    ) -> torch.Tensor:
        """Each pixel changes by eps up or down."""
        signs = (cls.start(images, eps, index, seed, number) - images).sign()
        return (images + eps * signs).clamp(0, 1)


@dataclass(frozen=True)
class L2Ball(Ball):
    """The images within ``eps`` (B, 1, ...) of ``clean`` (B, ...) in length, and in [0, 1].

    Lengths are summed in float64, so that they do not depend on the batch.
    """

    random_places = "random directions of length eps"

    clean: torch.Tensor
    eps: torch.Tensor

    @classmethod
    def around(cls, clean: torch.Tensor, eps: float | torch.Tensor) -> Self:
        """A radius for each image."""
        each = clean.new_ones(len(clean)) * torch.as_tensor(eps, device=clean.device).flatten()
        return cls(clean, wide(each.to(clean.dtype), clean))

    def project_(self, x: torch.Tensor) -> torch.Tensor:
        """``x``, scaled back onto the ball in place where it is outside, then clipped to [0, 1].

        As the clean image is in [0, 1], clipping moves no pixel away from it.
        """
        moved = x - self.clean
        length = wide(_length(moved), x)
        outside = length > self.eps + self.tolerance(x, self.eps)
        moved.mul_(torch.where(outside, self.eps / length, 1)).add_(self.clean)
        return x.copy_(torch.where(outside, moved, x)).clamp_(0, 1)

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """Each pixel takes the nearest k/255 on the way to the clean one, so no length grows.

        A pixel that has moved by less than 1/255 goes back: in large images a small eps then does
        little. The clean image has 8 bits.
        """
        level, start = GREY * x, (GREY * self.clean).round_()
        lower, higher = (level + GRID_TOLERANCE).floor(), (level - GRID_TOLERANCE).ceil()
        up = torch.maximum(lower, start)  # of a pixel that has become lighter
        return torch.where(level >= start, up, torch.minimum(higher, start)).div_(GREY)

    @staticmethod
    def direction(dx: torch.Tensor) -> torch.Tensor:
        """The gradient of each sample, divided by its length."""
        length = wide(_length(dx), dx)
        return torch.where(length > 0, dx / length, 0)

    @staticmethod
    def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The Euclidean length of the difference."""
        return _length(a - b)

    @staticmethod
    def tolerance(images: torch.Tensor, eps: torch.Tensor) -> float | torch.Tensor:
        """At most sqrt(d) times that of a pixel, 6e-8, and about 4e-7 of eps; d pixels.

        So a projected image is in the ball to within this, and projecting it again leaves it.
        """
        return PIXEL_ROUNDING * math.sqrt(images[:1].numel()) + EPS_ROUNDING * eps

    @staticmethod
    def start(
        images: torch.Tensor, eps: float, index: torch.Tensor, seed: int, restart: int
    ) -> torch.Tensor:
        """A random direction of length eps u^(1/d), u uniform in [0, 1), d the number of pixels."""
        share = uniform(index, seed, f"start {restart}: length", (1,))[:, 0]  # of the volume
        reach = share ** (1 / images[0].numel())
        way = L2Ball.direction(normal(index, seed, f"start {restart}", images.shape[1:]))
        return images + way * wide((eps * reach).to(images.dtype), images)

    @classmethod
    def far(
        cls, images: torch.Tensor, eps: float, index: torch.Tensor, seed: int, number: int
    ) -> torch.Tensor:
        """A random direction of length eps; what is clipped makes it shorter."""
        way = cls.direction(normal(index, seed, f"start {number}", images.shape[1:]))
        return (images + eps * way).clamp(0, 1)


BALLS: dict[str, type[LInfBall] | type[L2Ball]] = {"linf": LInfBall, "l2": L2Ball}


def wide(rows: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """``rows`` (b,) as (b, 1, ...), to go with ``images`` (b, ...)."""
    return rows.view(-1, *[1] * (images.ndim - 1))


def a_sample(value: float | torch.Tensor, images: torch.Tensor) -> float | torch.Tensor:
    """A number as it is, and (B,) as (B, 1, ...) to go with ``images`` (B, ...)."""
    return value if isinstance(value, float | int) else wide(value.to(images), images)


def _length(x: torch.Tensor) -> torch.Tensor:
    """(B,) Euclidean lengths of the samples ``x`` (B, ...), in their type."""
    length: torch.Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=torch.float64)
    return length.to(x.dtype)
