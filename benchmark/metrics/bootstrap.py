"""Statistics over queries for tables: the mean, its bootstrap interval, the deciles."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
LEVEL = 0.95
SEED = 20220304  # part of the protocol: the same outcomes have the same interval everywhere


class Estimate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A number of a table.

    Attributes:
        value: the number.
        low, high: its 95% interval; None if the number is not a mean over queries (e.g. NMI).
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
    drawn = (sample[generator.integers(n, size=n)] for _ in range(RESAMPLES))
    found = np.array([statistic(one) for one in drawn])
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(found, [tail, 100 - tail])
    return Estimate(float(statistic(sample)), float(low), float(high), n)


def wilson(share: npt.ArrayLike, n: int) -> tuple[npt.NDArray[np.float64], ...]:
    """The 95% interval of shares in [0, 1] that were counted in ``n`` queries (Wilson, 1927)."""
    p, z = np.asarray(share, dtype=np.float64), NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return middle - half, middle + half


def deciles(values: npt.ArrayLike) -> list[float]:
    """Compute the 0%, 10%, ..., 100% quantiles of ``values`` (n,): 11 numbers. NaN is left out."""
    return _quantiles(values, 10)


def percentiles(values: npt.ArrayLike) -> list[float]:
    """The same by single percents: 101 numbers."""
    return _quantiles(values, 100)


def _quantiles(values: npt.ArrayLike, parts: int) -> list[float]:
    sample = np.asarray(values, dtype=np.float64)
    return [float(q) for q in np.nanquantile(sample, np.linspace(0, 1, parts + 1))]
