"""Statistics over the seeds of a model: mean, deviation and interval. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from dmlbench.analysis.records import ROW, Row, headings
from dmlbench.metrics.bootstrap import LEVEL, Estimate
from dmlbench.metrics.names import OVER_STARTS

CONFIGURATION = tuple(name for name in ROW if name != "seed")


@dataclass(frozen=True)
class Spread:
    """A number over ``n`` seeds, with its 95% interval over seeds and queries.

    Attributes:
        n: number of seeds.
        mean: mean over seeds.
        sd: sample standard deviation; None for one seed.
        below, above: how far the 95% interval over queries reaches from the number, as a mean over
            the seeds that have one; None if none has. All seeds share the same queries, so more
            seeds do not make it smaller.
    """

    n: int
    mean: float
    sd: float | None = None
    below: float | None = None
    above: float | None = None

    @property
    def low(self) -> float | None:
        """Lower end of the 95% interval of the mean; None for one seed without an interval."""
        return self.mean - math.hypot(self._reach, self.below or 0) if self._known else None

    @property
    def high(self) -> float | None:
        """Upper end of the 95% interval of the mean; None for one seed without an interval."""
        return self.mean + math.hypot(self._reach, self.above or 0) if self._known else None

    def as_json(self) -> dict[str, float | None]:
        """``n``, ``mean``, ``sd``, ``low`` and ``high``."""
        return {key: getattr(self, key) for key in ("n", "mean", "sd", "low", "high")}

    @property
    def _known(self) -> bool:
        return self.sd is not None or self.below is not None

    @cached_property
    def _reach(self) -> float:
        """Half the width of the interval over seeds, by Student's t with n - 1 degrees of freedom.

        The numbers are assumed to be normally distributed over seeds. 0 for one seed.
        """
        if self.sd is None:
            return 0.0
        from scipy.special import stdtrit  # 0.4 s, and most tables show no interval

        return float(stdtrit(self.n - 1, (1 + LEVEL) / 2)) * self.sd / math.sqrt(self.n)


def spread(values: Sequence[float]) -> Spread:
    """The spread of ``values`` (n,), n >= 1: of 1, 2, 3 it is 2 +- 1, from -0.48 to 4.48."""
    return Spread(len(values), fmean(values), stdev(values) if len(values) > 1 else None)


def spread_of(name: str, estimates: Sequence[Estimate]) -> Spread:
    """The spread of a metric's ``estimates`` (n,), n >= 1, with their intervals over queries."""
    one = spread([estimate.value for estimate in estimates])
    reach = [
        (e.value - e.low, e.high - e.value)
        for e in estimates
        if e.low is not None and e.high is not None and name not in OVER_STARTS
    ]
    if not reach:
        return one
    below, above = (fmean(ends) for ends in zip(*reach, strict=True))
    return replace(one, below=below, above=above)


def over(values: Sequence[float], queries: Estimate) -> Estimate:
    """The mean of ``values`` (n,), one of each seed, with its interval over seeds and queries.

    Args:
        values: the number of each seed.
        queries: an estimate whose ``low`` and ``high`` reach as far from its value as the interval
            over queries.
    """
    assert queries.low is not None
    assert queries.high is not None
    one = spread(values)
    one = replace(one, below=queries.value - queries.low, above=queries.high - queries.value)
    return Estimate(one.mean, one.low, one.high, queries.n)


def by_configuration(rows: Iterable[Row]) -> list[list[Row]]:
    """Groups of rows that differ in the seed alone, one row for each seed, sorted by seed.

    Of several rows with one seed the one that was measured last counts: weights that were trained
    again may differ in their last bits. Only rows of one state of the images count, that of the row
    that was measured last: a folder may have changed, and a mean is of seeds on the same images.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.about[name] for name in CONFIGURATION), []).append(row)
    found = []
    for group in groups.values():
        images = last_images(group)
        ascending = sorted(group, key=_newest)
        latest = {row.about["seed"]: row for row in ascending if row.data in ("", images)}
        found.append([latest[seed] for seed in sorted(latest)])
    return found


def last_images(rows: Iterable[Row]) -> str:
    """The digest of the images of the row that was measured last; empty if no row tells it."""
    known = [row.data for row in sorted(rows, key=_newest) if row.data]
    return known[-1] if known else ""


def _newest(row: Row) -> str:
    """The time of the newest number in a row, as text that sorts by time."""
    return max((record["started"] for record in row.records.values()), default="")


def over_seeds(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """A record for each configuration.

    Keys: ``CONFIGURATION``, ``seeds``, and for each heading its name (the mean) and its name with
    ``sd``, ``low``, ``high`` and ``n``. A seed whose cell failed does not count in ``n``.
    """
    records = []
    for group in by_configuration(rows):
        record = {name: group[0].about[name] for name in CONFIGURATION}
        record["seeds"] = " ".join(str(row.about["seed"]) for row in group)
        for heading in headings(group):
            if found := [r.estimates[heading] for r in group if heading in r.estimates]:
                one = spread_of(heading, found)
                record[heading] = one.mean
                record |= {f"{heading} {k}": getattr(one, k) for k in ("sd", "low", "high", "n")}
        records.append(record)
    return records


def columns(rows: Sequence[Row]) -> list[str]:
    """The columns of the CSV of ``over_seeds(rows)``."""
    ends = ("", " sd", " low", " high", " n")
    return [*CONFIGURATION, "seeds", *(f"{h}{end}" for h in headings(rows) for end in ends)]
