"""Agreement of claimed outcomes with those that were measured again, query by query.

On the machine and with the libraries of the claim, outcomes are the same to the last digit. On
others, rounding sends some attacks another way: a few queries end elsewhere, in either direction.
So the mean difference decides, against the noise that these very differences have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmlbench.common.lazy import np
from dmlbench.metrics.bootstrap import Estimate, bootstrap_mean

if TYPE_CHECKING:
    import numpy.typing as npt

    Values = npt.NDArray[np.float64]

TOLERANCE = 0.25  # two means may differ by this share of half the interval without any doubt
ALPHA = 0.01  # chance at most that noise in either direction alone refuses any number of a bundle
QUIET = 0.002  # share of all other outcomes that differ, below which rounding explains nothing
FEW = 2  # outcomes that differ in one number for it to count then
RARE = 3.0  # outcomes that may be others though n were all the same (95%: the rule of three)
SAME = 1e-4  # of an outcome's own size (at least of 1): outcomes closer than that are the same


class Refused(Exception):  # noqa: N818 - it is a verdict, not a fault
    """The bundle is not what it says; the message says why."""


@dataclass(frozen=True)
class Agreement:
    """A number of a bundle, held against a new measurement of some of its queries.

    Attributes:
        metric: ``ES:R``.
        attack: spec of the attack in short.
        suite: of the attack; empty for clean images.
        n: queries that were measured again.
        differing: those of them with another outcome.
        stated: the number in the row, over all its queries.
        claimed: mean of the claimed outcomes of the ``n`` queries.
        measured: mean of the new ones.
        chance: probability, at most, of so large a mean difference by noise in either direction.
        tolerance: mean difference that is accepted.
        complete: true if every query of the row was measured again.
        outside: true if so, and the claimed mean lies outside the interval of the new outcomes.
        alone: true if several outcomes differ and those of other attacks do not.
        compared: columns of the bundle that were measured again. ``chance`` counts so many times,
            as noise in any of them could refuse the bundle (Bonferroni's correction).
    """

    metric: str
    attack: str
    suite: str
    n: int
    differing: int
    stated: float
    claimed: float
    measured: float
    chance: float
    tolerance: float
    complete: bool
    outside: bool
    alone: bool = False
    compared: int = 1

    @property
    def close(self) -> bool:
        """True if the means differ by no more than the tolerance."""
        return abs(self.claimed - self.measured) <= self.tolerance

    @property
    def refused(self) -> bool:
        """True if the claim cannot be right."""
        unlikely = self.chance * self.compared < ALPHA
        return not self.close and (unlikely or self.outside or self.alone)


def agreement(
    claimed: Values,
    measured: Values,
    stated: Estimate,
    complete: bool,
    bounds: tuple[float, float],
    *,
    metric: str,
    attack: str,
    suite: str,
) -> Agreement:
    """Hold claimed outcomes (n,) against new ones (n,) of the same queries.

    A query with a number in one of them only counts as a difference that nothing explains. Once
    all queries were measured, the interval of the new outcomes counts: the stated one is as wide as
    the claim makes it.

    Args:
        claimed, measured: the outcomes; NaN where there is none.
        stated: the number in the row, over all its queries.
        complete: true if these are all its queries.
        bounds: the least and the largest outcome that a query can have.
        metric, attack, suite: of the result.
    """
    gaps = np.isnan(claimed) != np.isnan(measured)
    both = ~np.isnan(claimed) & ~np.isnan(measured)
    a, b = claimed[both], measured[both]
    difference = a - b
    difference[np.abs(difference) <= SAME * np.maximum(1, np.abs(b))] = 0
    known = bootstrap_mean(b) if complete and len(b) else stated
    low, high = known.low, known.high
    half = 0.0 if low is None or high is None else (high - low) / 2
    mean_a, mean_b = (float(x.mean()) if len(x) else math.nan for x in (a, b))
    outside = low is not None and high is not None and not _near(mean_a, low, high, bounds, len(b))
    return Agreement(
        metric=metric,
        attack=attack,
        suite=suite,
        n=len(claimed),
        differing=int(np.count_nonzero(difference) + gaps.sum()),
        stated=stated.value,
        claimed=mean_a,
        measured=mean_b,
        chance=0.0 if gaps.any() else chance(difference),
        tolerance=-1.0 if gaps.any() else max(TOLERANCE * half, SAME),
        complete=complete,
        outside=complete and outside,
    )


def _near(mean: float, low: float, high: float, bounds: tuple[float, float], queries: int) -> bool:
    """True if a mean lies within an interval; one without a width is widened by rare outcomes.

    No resample of outcomes that are all the same has another mean, but the next query may differ.
    """
    span = bounds[1] - bounds[0]
    beside = RARE * span / queries if low == high and math.isfinite(span) and queries else 0.0
    return low - beside <= mean <= high + beside


def unexplained(numbers: Sequence[Agreement]) -> list[Agreement]:
    """The numbers that differ where all else is the same, as on the machine of the claim.

    Rounding of another machine is seen in most attacks at once: ranks and distances differ in their
    last digits. Where it is not, several outcomes of one attack that differ have no such cause.
    """
    return [
        one
        for one in numbers
        if not one.close and one.differing >= FEW and differs_alone(one, numbers)
    ]


def differs_alone(one: Agreement, numbers: Sequence[Agreement]) -> bool:
    """True if outcomes of a number differ, and hardly any of the other attacks' do."""
    others = [o for o in numbers if (o.suite, o.attack) != (one.suite, one.attack)]
    differing, total = sum(o.differing for o in others), sum(o.n for o in others)
    return one.differing > 0 and differing < QUIET * total


def chance(difference: Values) -> float:
    """A bound on the probability of so large a |sum|, if the sign of each number were a coin's.

    The smaller of two bounds, doubled since there are two: Hoeffding's, which sees sizes, and that
    of the sign test, which is exact for numbers of one size.
    """
    signed = difference[difference != 0]
    if not len(signed):
        return 1.0
    hoeffding = 2 * math.exp(-(float(signed.sum()) ** 2) / (2 * float(np.square(signed).sum())))
    more = int(max((signed > 0).sum(), (signed < 0).sum()))
    tail = sum(math.comb(len(signed), k) for k in range(more, len(signed) + 1))
    sign = 2 * tail / 2 ** len(signed)
    agrees = (signed > 0).sum() * 2 == len(signed) or (
        ((signed > 0).sum() * 2 > len(signed)) == (float(signed.sum()) > 0)
    )
    return min(1.0, 2 * min(hoeffding, sign if agrees else 1.0))
