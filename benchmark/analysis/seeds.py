"""What seeds make of a number: its mean, deviation and interval. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from dmlbench.analysis.records import ROW, Row, headings, one_a_seed

LEVEL = 0.95
CONFIGURATION = tuple(name for name in ROW if name != "seed")


@dataclass(frozen=True)
class Spread:
    """A number over ``n`` seeds.

    Attributes:
        mean: over the seeds.
        sd: sample standard deviation; None of one seed.
        low, high: 95% interval of the mean by Student's t with n - 1 degrees of freedom, which
            takes the seeds as draws from a normal distribution; None of one seed.
    """

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None


def spread(values: Sequence[float]) -> Spread:
    """``values`` (n,), n >= 1, one a seed: ``spread([1, 2, 3])`` is 2 +- 1, from -0.48 to 4.48."""
    n, mean = len(values), fmean(values)
    if n == 1:
        return Spread(n, mean)
    from scipy.special import stdtrit

    sd = stdev(values)
    reach = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * sd / math.sqrt(n)
    return Spread(n, mean, sd, mean - reach, mean + reach)


def over_seeds(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """A record for each configuration, of the rows that differ in nothing but the seed.

    Keys: ``CONFIGURATION``, ``seeds`` (those there are), and for each heading the mean
    under its name, and ``sd``, ``low``, ``high`` and ``n`` after it. A seed whose cell has failed
    does not count in ``n``.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.about[name] for name in CONFIGURATION), []).append(row)
    records = []
    for configuration, several in groups.items():
        group = one_a_seed(several)
        record = dict(zip(CONFIGURATION, configuration, strict=True))
        record["seeds"] = " ".join(str(seed) for seed in sorted({r.about["seed"] for r in group}))
        values = {
            h: [r.estimates[h].value for r in group if h in r.estimates] for h in headings(group)
        }
        for heading, found in values.items():
            if found:
                one = spread(found)
                record[heading] = one.mean
                record |= {f"{heading} {k}": getattr(one, k) for k in ("sd", "low", "high", "n")}
        records.append(record)
    return records


def columns(rows: Sequence[Row]) -> list[str]:
    """The columns of the CSV of ``over_seeds(rows)``."""
    ends = ("", " sd", " low", " high", " n")
    return [
        *CONFIGURATION,
        "seeds",
        *(f"{h}{end}" for h in headings(rows) for end in ends),
    ]
