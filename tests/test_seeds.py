"""Several seeds: mean, deviation and the interval of seeds and queries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from msgspec.structs import replace
from scipy.stats import t as students_t

from dmlbench.analysis.records import wide
from dmlbench.analysis.seeds import over, over_seeds, spread, spread_of
from dmlbench.metrics.bootstrap import Estimate
from tests.cells import cell, with_facts


def test_mean_deviation_and_interval_over_seeds() -> None:
    values = [3.0, 5.0, 10.0]
    found = spread(values)
    low, high = students_t.interval(0.95, 2, np.mean(values), np.std(values, ddof=1) / np.sqrt(3))
    assert (found.mean, found.sd) == (6, pytest.approx(np.std(values, ddof=1)))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert spread([4.0]).sd is None
    rows = wide([cell("CA+", v, seed=s) for s, v in enumerate(values)] + [cell("TMA", 1, seed=2)])
    (record,) = over_seeds(rows)
    assert record["seeds"] == "0 1 2"
    assert (record["CA+"], record["CA+ n"], record["TMA n"], record["TMA sd"]) == (6, 3, 1, None)


def test_a_mean_is_of_seeds_on_the_same_images() -> None:
    """A folder has changed, and one seed was measured again: the other is of the older images."""
    old = [with_facts(cell("CA+", 30, seed=s), data="before") for s in (0, 1)]
    new = replace(with_facts(cell("CA+", 10, seed=1), data="after"), started=9.0)
    (record,) = over_seeds(wide([*old, new]))
    assert (record["seeds"], record["CA+"], record["CA+ n"]) == ("1", 10, 1)


def test_the_interval_over_seeds_holds_that_over_queries_too() -> None:
    """All seeds share the queries: three seeds do not make that interval smaller."""
    found = [Estimate(v, v - below, v + 2, 40) for v, below in ((3, 1), (5, 2), (10, 3))]
    plain, one = spread([3.0, 5.0, 10.0]), spread_of("CA+", found)
    assert plain.low is not None
    assert plain.high is not None
    assert one.low == pytest.approx(6 - math.hypot(6 - plain.low, 2))
    assert one.high == pytest.approx(6 + math.hypot(plain.high - 6, 2))
    (alone, without) = spread_of("CA+", found[:1]), spread_of("CA+", [Estimate(3, None, None, 40)])
    assert (alone.low, alone.high) == (2, 5)
    assert (without.low, without.high) == (None, None)
    assert spread_of("NMI", found).low == plain.low  # its range over starts is no interval
    partly = spread_of("CA+", [*found[:2], Estimate(10, None, None, 40)])  # the reach of two seeds
    assert partly.low == pytest.approx(6 - math.hypot(6 - plain.low, 1.5))
    none = spread_of("CA+", [Estimate(v, None, None, 40) for v in (3, 5, 10)])
    assert (none.low, none.high) == (plain.low, plain.high)
    both = over([3, 5, 10], Estimate(0, -2, 2, 40))
    assert (both.value, both.low, both.high, both.n) == (6, one.low, one.high, 40)
