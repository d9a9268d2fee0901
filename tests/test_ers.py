"""The ERS formula gives the published score for every complete published row."""

from __future__ import annotations

import csv
import re
from importlib import resources

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlbench.metrics.ers import ERS_COLUMNS, ers, ers_per_query, score_per_query
from dmlbench.metrics.names import ERS, WORST

with (resources.files("dmlbench.report") / "published.csv").open(encoding="utf-8") as file:
    PUBLISHED = list(csv.DictReader(file))
COMPLETE = [row for row in PUBLISHED if row["ERS"] and all(row[name] for name in ERS_COLUMNS)]


def test_the_published_rows_are_all_there() -> None:
    assert len(PUBLISHED) == 157
    assert len(COMPLETE) == 87


@pytest.mark.parametrize("row", COMPLETE, ids=lambda r: f"{r['dataset']}-{r['defense']}-{r['ERS']}")
def test_ers_gives_the_published_score(row: dict[str, str]) -> None:
    score = ers({name: float(row[name]) for name in ERS_COLUMNS})
    assert score == pytest.approx(float(row["ERS"]), abs=0.1)


def test_the_documented_fashion_scores() -> None:
    """RobRank's documentation prints no ERS; its ten columns give 4.2, 38.7 and 63.3."""
    rows = {
        row["defense"]: row
        for row in PUBLISHED
        if row["dataset"] == "fashion" and row["loss"] == "triplet-N" and row["CA+"]
    }
    scores = {
        name: ers({column: float(row[column]) for column in ERS_COLUMNS})
        for name, row in rows.items()
    }
    assert scores == pytest.approx({"N/A[R]": 4.2, "EST[R]": 38.7, "ACT[R]": 63.3}, abs=0.05)


def test_bounds_and_extremes() -> None:
    broken = dict(zip(ERS_COLUMNS, (0, 100, 0, 100, 1, 2, 0, 0, 0, 0), strict=True))
    untouched = dict(zip(ERS_COLUMNS, (50, 0, 50, 0, 0, 0, 100, 100, 100, 100), strict=True))
    assert ers(broken) == 0
    assert ers(untouched) == 100
    with pytest.raises(ValueError, match="metric N"):
        ers(untouched | {"ES:D": 9.3})


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_the_shares_of_the_queries_average_to_the_score_of_the_means(
    seed: int, queries: int
) -> None:
    random = np.random.default_rng(seed)
    outcomes = {name: random.uniform(0, 2, queries) for name in ERS_COLUMNS}
    for name in ("ES:R", "LTM", "GTM"):  # the class has no other member; of one query it has
        outcomes[name][1:][random.random(queries - 1) < 0.4] = np.nan
    attacked = random.random(queries) < 0.7
    attacked[0] = True
    for values in outcomes.values():
        values[~attacked] = np.nan
    found = ers_per_query(outcomes)
    score = ers({name: float(np.nanmean(values)) for name, values in outcomes.items()})
    assert np.nanmean(found) == pytest.approx(score)
    assert (np.isnan(found) == ~attacked).all()


def test_the_share_of_a_query_is_its_own_score() -> None:
    untouched = dict(zip(ERS_COLUMNS, (50, 0, 50, 0, 0, 0, 100, 100, 100, 100), strict=True))
    broken = dict(zip(ERS_COLUMNS, (0, 100, 0, 100, 1, 2, 0, 0, 0, 0), strict=True))
    outcomes = {name: np.array([untouched[name], broken[name]]) for name in ERS_COLUMNS}
    assert ers_per_query(outcomes).tolist() == [100, 0]


def test_robust_recall_is_the_least_outcome_of_each_query() -> None:
    sources = [("ES:R", np.array([100.0, 0, np.nan])), ("LTM", np.array([100.0, 100, np.nan]))]
    np.testing.assert_array_equal(score_per_query(WORST, sources), [100, 0, np.nan])
    ten = [(name, np.array([1.0, 2])) for name in ERS_COLUMNS]
    assert score_per_query(ERS, ten).tolist() == ers_per_query(dict(ten)).tolist()


@pytest.mark.parametrize("name", ERS_COLUMNS)
def test_a_column_without_any_outcome_has_no_score(name: str) -> None:
    """Its term would be 0, as if every query were broken."""
    outcomes = {column: np.ones(3) for column in ERS_COLUMNS} | {name: np.full(3, np.nan)}
    with pytest.raises(ValueError, match=f"no query has an outcome of {re.escape(name)}, so"):
        ers_per_query(outcomes)
