"""The order of models equals an explicit loop over resamples, and says what is certain."""

from __future__ import annotations

import numpy as np
import pytest

from dmlbench.analysis.order import difference, order
from dmlbench.metrics.bootstrap import SEED


def test_it_is_the_loop_over_resamples() -> None:
    generator = np.random.default_rng(0)
    outcomes = {
        name: generator.normal(m, 5, (3, 20)) for name, m in zip("abc", (0, 1, 9), strict=True)
    }
    outcomes["d"] = outcomes["a"].copy()  # always equal
    found = {one.name: one for one in order(outcomes, 400)}
    draws = np.random.default_rng(SEED)
    of_seeds = draws.multinomial(3, [1 / 3] * 3, 400)
    of_queries = draws.multinomial(20, [1 / 20] * 20, 400)
    ranks: dict[str, list[float]] = {name: [] for name in outcomes}
    first = dict.fromkeys(outcomes, 0.0)
    means: dict[str, list[float]] = {name: [] for name in outcomes}
    for seeds, queries in zip(of_seeds, of_queries, strict=True):
        score = {}
        for name, values in outcomes.items():
            rows = [i for i, count in enumerate(seeds) for _ in range(count)]
            columns = [j for j, count in enumerate(queries) for _ in range(count)]
            score[name] = round(float(np.mean([[values[i][j] for j in columns] for i in rows])), 9)
        for name in outcomes:
            above = sum(other > score[name] for other in score.values())
            level = sum(other == score[name] for other in score.values())
            ranks[name].append(above + (level + 1) / 2)
            means[name].append(score[name])
            if not above:
                first[name] += 1 / level / 400
    for name, one in found.items():
        assert one.rank == pytest.approx(np.mean(ranks[name]))
        assert one.first == pytest.approx(first[name])
        low, high = np.percentile(means[name], [2.5, 97.5])
        assert (one.low, one.high) == pytest.approx((low, high))
    assert found["a"].mean == found["d"].mean


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
    assert 0.7 < first.above_next < 0.8  # three of four draws of the two seeds


def test_queries_without_a_value_are_left_out_and_shapes_must_agree() -> None:
    a, b = np.array([[1.0, np.nan, 3.0]]), np.array([[0.0, 50.0, 0.0]])
    (first, second) = order({"a": a, "b": b})
    assert (first.name, first.mean, second.mean) == ("a", 2, 0)
    with pytest.raises(ValueError, match="same seeds"):
        order({"a": a, "b": b[:, :2]})
    with pytest.raises(ValueError, match="no query"):
        order({"a": a * np.nan, "b": b})


def test_a_difference_is_that_of_the_same_resamples() -> None:
    generator = np.random.default_rng(1)
    a, b = generator.normal(0.4, 1, (3, 25)), generator.normal(0, 1, (3, 25))
    a[1, 7] = np.nan
    kept = [j for j in range(25) if j != 7]
    found = difference(a, b, 300)
    draws = np.random.default_rng(SEED)
    of_seeds = draws.multinomial(3, [1 / 3] * 3, 300)
    of_queries = draws.multinomial(24, [1 / 24] * 24, 300)
    drawn = []
    for seeds, queries in zip(of_seeds, of_queries, strict=True):
        rows = [i for i, count in enumerate(seeds) for _ in range(count)]
        columns = [kept[j] for j, count in enumerate(queries) for _ in range(count)]
        drawn.append(float(np.mean([a[i, j] - b[i, j] for i in rows for j in columns])))
    assert found.mean == pytest.approx((a - b)[:, kept].mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))
    same = difference(a, a)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="same seeds"):
        difference(a, b[:2])
