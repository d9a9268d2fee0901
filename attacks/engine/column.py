"""The columns that an attack fills in tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dmlbench.metrics.distance import Metric

Bounds = tuple[float, float]
UNITS = ("%", "/255", "")


@dataclass(frozen=True)
class Column:
    """A number that an attack reports, as a mean over queries.

    Attributes:
        name: its heading, as in the papers' tables.
        unit: ``%`` for ranks and recalls in percent, ``/255`` for perturbations in grey levels,
            ``""`` for similarities and distances.
        better: which direction is better for the defender.
        help: what the number means, in a sentence or two: its value where nothing was attacked,
            and where the attack succeeds entirely.
        bounds: the least and the largest value that a query can have: (low, high), or such a pair
            for each metric. None: 0 and 100 where the unit is ``%``, otherwise unbounded.
        rank: true if the value of a query is a percentile rank; plots show its distribution.
        median: heading of the median over queries, where tables have that beside the mean.
        curve: meaning of a query's value as an axis of plots, e.g. ``eps in 1/255``, where they
            draw the share of queries above each value: R@1 as a function of eps. Else empty.
        pursued: false if the attack reports this number and pursues another one. Noise may then
            change it more than the attack does, and no flag is due.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"]
    help: str = ""
    bounds: Bounds | Mapping[Metric, Bounds] | None = None
    rank: bool = False
    median: str = ""
    curve: str = ""
    pursued: bool = True

    @property
    def headings(self) -> tuple[Column, ...]:
        """Itself, and its median as a column of tables."""
        if not self.median:
            return (self,)
        of = f"Median of {self.name}, whose mean is beside it. {self.help}"
        return self, dataclasses.replace(self, name=self.median, median="", help=of)

    def within(self, metric: Metric) -> Bounds:
        """The least and the largest value under ``metric``, infinite where there is none."""
        if isinstance(self.bounds, Mapping):
            return self.bounds[metric]
        return self.bounds or ((0, 100) if self.unit == "%" else (-math.inf, math.inf))
