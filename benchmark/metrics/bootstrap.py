"""What a table says of many queries: the mean, its seeded bootstrap interval, the deciles."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
LEVEL = 0.95
SEED = 20220304  # part of the protocol: the same outcomes have the same interval everywhere


class Estimate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A number with its 95% interval over ``n`` queries; no interval where it is no mean."""

    value: float
    low: float | None
    high: float | None
    n: Annotated[int, msgspec.Meta(ge=0)]


def bootstrap_mean(values: npt.ArrayLike) -> Estimate:
    """The mean of ``values`` (n,) with its 95% percentile-bootstrap interval.

    NaN entries are left out and do not count in ``n``.

    Raises:
        ValueError: no finite value is left.
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
    """The 0%, 10%, ..., 100% quantiles of ``values`` (n,), NaN entries left out: 11 numbers."""
    sample = np.asarray(values, dtype=np.float64)
    return [float(q) for q in np.nanquantile(sample, np.linspace(0, 1, 11))]
