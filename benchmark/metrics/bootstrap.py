"""Statistics over queries: mean and median with bootstrap intervals, deciles, shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
LEVEL = 0.95  # confidence of every interval
PART = 1 << 18  # numbers drawn at once
POINTS = 101  # of a step function, at most
SEED = 20220304  # part of the protocol: the same outcomes have the same interval everywhere


class Estimate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A number of a table.

    Attributes:
        value: the number.
        low, high: its 95% interval; None if the number is not a mean over queries. Of NMI, which is
            none, the range over the starts of k-means.
        n: the number of queries.
    """

    value: float
    low: float | None
    high: float | None
    n: Annotated[int, msgspec.Meta(ge=0)]


def bootstrap_mean(values: npt.ArrayLike) -> Estimate:
    """Compute the mean of ``values`` (n,) and its 95% interval by the percentile bootstrap.

    NaN entries are left out and do not count in ``n``. The resamples are seeded.

    Raises:
        ValueError: every entry is NaN.
    """
    return _bootstrap(values, np.mean)


def bootstrap_median(values: npt.ArrayLike) -> Estimate:
    """The same for the median."""
    return _bootstrap(values, np.median)


def _bootstrap(values: npt.ArrayLike, statistic: Callable[..., np.floating]) -> Estimate:
    sample = np.asarray(values, dtype=np.float64)
    sample = sample[~np.isnan(sample)]
    n = len(sample)
    if n == 0:
        raise ValueError("no value to average: every outcome is NaN")
    generator = np.random.default_rng(SEED)
    at_once = max(1, min(RESAMPLES, PART // n))
    sizes = [min(at_once, RESAMPLES - start) for start in range(0, RESAMPLES, at_once)]
    drawn = (sample[generator.integers(n, size=(size, n))] for size in sizes)
    found = np.concatenate([statistic(resamples, axis=1) for resamples in drawn])
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(found, [tail, 100 - tail])
    return Estimate(float(statistic(sample)), float(low), float(high), n)


def deciles(values: npt.ArrayLike) -> list[float]:
    """Compute the 0%, 10%, ..., 100% quantiles of ``values`` (n,): 11 numbers. NaN is left out."""
    sample = np.asarray(values, dtype=np.float64)
    return [float(q) for q in np.nanquantile(sample, np.linspace(0, 1, 11))]


def shares_above(values: npt.ArrayLike) -> list[tuple[float, float]]:
    """Points (x, percent of ``values`` that are above x) of a falling step function, by rising x.

    Where the values have more than ``POINTS`` steps, these are thinned to quantiles; x = 0 is a
    point besides.

    Args:
        values: (n,) numbers, at least 0; NaN is left out.
    """
    sample = np.asarray(values, dtype=np.float64)
    sample = np.sort(sample[~np.isnan(sample)])
    steps = np.unique(sample)
    if len(steps) > POINTS:
        steps = np.unique(np.quantile(sample, np.linspace(0, 1, POINTS), method="higher"))
    above = len(sample) - np.searchsorted(sample, steps := np.union1d([0.0], steps), side="right")
    return [(float(x), float(100 * k / len(sample))) for x, k in zip(steps, above, strict=True)]
