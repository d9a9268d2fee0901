"""The order of models equals an explicit loop over draws, and says what is certain."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from dmlbench.metrics.bootstrap import SEED
from scripts.order import difference, order


def loop(values: list[list[float]], draws: int) -> list[float]:
    """Draws of the mean of (S, Q) values, by explicit loops; a query may be NaN in a seed."""
    seeds, queries = len(values), len(values[0])
    generator = np.random.default_rng(SEED)
    counts = generator.multinomial(queries, [1 / queries] * queries, draws)
    normal = generator.standard_normal((seeds, draws)) if seeds > 1 else None
    squared = generator.chisquare(seeds - 1, draws) if seeds > 1 else None
    plain = [float(np.nanmean(row)) for row in values]
    middle = sum(plain) / seeds
    deviation = statistics.stdev(plain) if seeds > 1 else 0.0
    found = []
    for draw in range(draws):
        means = []
        for row in values:
            drawn = [x for x, n in zip(row, counts[draw], strict=True) for _ in range(n)]
            means.append(float(np.nanmean(drawn)))
        of_seeds = 0.0
        if normal is not None and squared is not None and deviation:
            weights = [(one - middle) / deviation / math.sqrt(seeds - 1) for one in plain]
            unit = sum(w * z for w, z in zip(weights, normal[:, draw], strict=True))
            t = unit / math.sqrt(squared[draw] / (seeds - 1))
            of_seeds = t * deviation / math.sqrt(seeds)
        found.append(sum(means) / seeds + of_seeds)
    return found


def test_it_is_the_loop_over_draws() -> None:
    generator = np.random.default_rng(0)
    outcomes = {
        name: generator.normal(m, 5, (3, 20)) for name, m in zip("abc", (0, 1, 9), strict=True)
    }
    outcomes["d"] = outcomes["a"].copy()  # always equal
    found = {one.name: one for one in order(outcomes, 400)}
    drawn = {name: loop(values.tolist(), 400) for name, values in outcomes.items()}
    ranks: dict[str, list[float]] = {name: [] for name in outcomes}
    first = dict.fromkeys(outcomes, 0.0)
    for draw in range(400):
        score = {name: round(values[draw], 9) for name, values in drawn.items()}
        for name in outcomes:
            above = sum(other > score[name] for other in score.values())
            level = sum(other == score[name] for other in score.values())
            ranks[name].append(above + (level + 1) / 2)
            if not above:
                first[name] += 1 / level / 400
    for name, one in found.items():
        assert one.rank == pytest.approx(np.mean(ranks[name]))
        assert one.first == pytest.approx(first[name])
        low, high = np.percentile(drawn[name], [2.5, 97.5])
        assert (one.low, one.high) == pytest.approx((low, high))
    assert found["a"].mean == found["d"].mean


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_an_interval_holds_the_truth_as_often_as_it_says(seeds: int) -> None:
    """Trainings and queries both vary; the truth is 0. Of 95% intervals 95% must hold it."""
    generator = np.random.default_rng(seeds)
    repeats, held = 400, 0
    for _ in range(repeats):
        of_seeds = generator.normal(0, 1.5, (seeds, 1))
        of_queries = generator.normal(0, 8, (1, 60))
        values = of_seeds + of_queries + generator.normal(0, 5, (seeds, 60))
        found = difference(values, values * 0, 1000)
        held += found.low <= 0 <= found.high
    assert 0.93 <= held / repeats <= 0.995


def test_what_is_far_apart_is_certain_and_what_is_equal_is_even() -> None:
    noise = np.random.default_rng(0).normal(0, 1, (5, 50))
    found = order({"low": noise, "high": noise + 3, "same": noise + 3})
    assert [one.name for one in found] == ["high", "same", "low"]
    assert found[0].above_next == 0.5
    assert found[1].above_next == 1
    assert found[2].above_next is None
    assert [one.first for one in found] == [0.5, 0.5, 0]
    assert [one.rank for one in found] == [1.5, 1.5, 3]


def test_seeds_that_differ_make_the_order_uncertain() -> None:
    """Query by query a is better in each of 400, but in one of two trainings alone."""
    a = np.repeat([[10.0], [0.0]], 400, 1)
    b = np.repeat([[0.0], [9.0]], 400, 1)
    (first, _) = order({"a": a, "b": b})
    assert first.name == "a"
    assert first.above_next is not None
    assert 0.5 < first.above_next < 0.55  # 10 - 0 and 0 - 9: the mean is 0.5, t has one degree


def test_queries_without_a_value_are_left_out_and_shapes_must_agree() -> None:
    a, b = np.array([[1.0, np.nan, 3.0]]), np.array([[0.0, 50.0, 0.0]])
    (first, second) = order({"a": a, "b": b})
    assert (first.name, first.mean, second.mean) == ("a", 2, 0)
    with pytest.raises(ValueError, match="same seeds"):
        order({"a": a, "b": b[:, :2]})
    with pytest.raises(ValueError, match="no query"):
        order({"a": a * np.nan, "b": b})


def test_a_draw_without_a_known_query_has_no_mean_of_its_own() -> None:
    """Two of 50 queries count: a seventh of the draws has neither."""
    a, b = (np.full((2, 50), np.nan) for _ in range(2))
    a[:, [3, 40]], b[:, [3, 40]] = [80, 90], 70
    first, second = order({"a": a, "b": b})
    assert (first.name, first.first, first.low >= 80) == ("a", 1, True)
    assert (second.low, second.high) == (70, 70)
    found = difference(a, b)
    assert found.low >= 10
    assert found.p < 0.001


def test_a_difference_is_that_of_the_same_draws() -> None:
    generator = np.random.default_rng(1)
    a, b = generator.normal(0.4, 1, (3, 25)), generator.normal(0, 1, (3, 25))
    a[1, 7] = np.nan
    found = difference(a, b, 300)
    drawn = loop((a - b).tolist(), 300)
    assert found.mean == pytest.approx(np.mean([np.nanmean(row) for row in a - b]))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))
    alone = difference(a[:1], b[:1], 300)
    drawn = loop((a[:1] - b[:1]).tolist(), 300)
    assert (alone.low, alone.high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))
    drawn = loop((a - b).tolist(), 300)
    beyond = min(sum(one <= 0 for one in drawn), sum(one >= 0 for one in drawn))
    assert found.p == pytest.approx(2 * (1 + beyond) / 301)
    assert difference(a, a + 9, 300).p == pytest.approx(2 / 301)
    same = difference(a, a)
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="same seeds"):
        difference(a, b[:2])
