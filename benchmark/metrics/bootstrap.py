"""Statistics over queries for tables: the mean, its bootstrap interval, the deciles."""

from __future__ import annotations

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
    sample = np.asarray(values, dtype=np.float64)
    sample = sample[~np.isnan(sample)]
    n = len(sample)
    if n == 0:
        raise ValueError("no value to average: every outcome is NaN")
    generator = np.random.default_rng(SEED)
    means = np.array([sample[generator.integers(n, size=n)].mean() for _ in range(RESAMPLES)])
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Estimate(float(sample.mean()), float(low), float(high), n)


def deciles(values: npt.ArrayLike) -> list[float]:
    """Compute the 0%, 10%, ..., 100% quantiles of ``values`` (n,): 11 numbers. NaN is left out."""
    sample = np.asarray(values, dtype=np.float64)
    return [float(q) for q in np.nanquantile(sample, np.linspace(0, 1, 11))]
