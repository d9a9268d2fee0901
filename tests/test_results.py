"""The tables of the pages in results/ equal those written from the committed CSVs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from dmlbench.analysis.csv_files import read_tidy
from dmlbench.analysis.records import record_order, tidy
from dmlbench.core.protocol import SUITES
from dmlbench.metrics.ers import ers
from dmlbench.report.entries import measured
from dmlbench.storage.store import Store
from scripts import ablations, claims, collect
from scripts.facts import Findings
from scripts.order import Difference, orders
from scripts.reading import pages, photographs, unattacked, written
from tests.synthetic import FULL, attacked, failed, model, write


def test_the_tables_are_those_of_the_csvs() -> None:
    """If it fails, write the tables again: python -m scripts.reading."""
    assert written(pages()) == pages()


def test_a_number_changed_by_hand_is_found() -> None:
    before = pages()
    path, page = next((path, page) for path, page in before.items() if "<!-- order -->" in page)
    cell = page.index("| auto | ", page.index("<!-- order -->")) + len("| auto | ")
    changed = before | {path: page[:cell] + "9" + page[cell:]}
    assert written(changed) == before
    for wrong in ("", "<!-- order -->\n\n<!-- order -->", "<!-- none -->"):
        with pytest.raises(ValueError, match="needs one line"):
            written(before | {path: page.replace("<!-- order -->", wrong)})


def test_the_findings_of_a_results_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for one in model():
        store.put(one, {name: np.zeros(4) for name in one.metrics})
    assert Findings(tmp_path).ers("hm") == pytest.approx(ers(FULL))


@pytest.mark.parametrize("table", ["2", *ablations.TABLES])
def test_each_row_of_a_table_of_the_paper_finds_its_published_figures(table: str) -> None:
    found = [ablations.there().get(ablations.key(one)) for one in ablations.trainings(table)]
    assert all(entry is not None for entry in found)
    assert len({id(entry) for entry in found}) == len(found)  # and no two the same


def test_a_statement_is_the_difference_of_the_seeds_that_both_models_have() -> None:
    generator = np.random.default_rng(0)
    rows = [
        (suite, "ERS", label, seed, query, generator.normal(mean, 1))
        for suite in ("strict", "auto")
        for label, mean, seeds in (("a", 9, (0, 1, 2)), ("b", 5, (1, 2, 3)))
        for seed in seeds
        for query in range(30)
    ]
    columns = ["suite", "metric", "label", "seed", "query", "value"]
    outcomes = pd.DataFrame(rows, columns=columns)
    of = {(r[0], r[2], r[3], r[4]): r[5] for r in rows}
    expected = np.mean(
        [of["auto", "a", s, q] - of["auto", "b", s, q] for s in (1, 2) for q in range(30)]
    )

    def said(above: str, below: str) -> claims.Measured:
        return claims.measured(claims.by_model(outcomes), claims.Claim("", above, below), "auto")

    found = said("a", "b")
    assert str(found).startswith(f"yes {expected:+.1f} [")
    assert str(found).endswith(" (2 seeds)")
    assert str(replace(found, firm=True)).startswith(f"**yes** {expected:+.1f} [")
    assert str(said("b", "a")).startswith("no -")
    assert str(replace(said("a", "a"), firm=True)) == "open +0.0 [0.0, 0.0]"
    assert str(said("a", "c")) == "–"


def seeded(seeds: dict[str, tuple[int, ...]]) -> pd.DataFrame:
    """An ERS of 30 queries for each seed of each label, a point more for each label."""
    generator = np.random.default_rng(0)
    rows = [
        ("auto", "ERS", label, seed, query, generator.normal(number, 0.1))
        for number, label in enumerate(seeds)
        for seed in seeds[label]
        for query in range(30)
    ]
    return pd.DataFrame(rows, columns=["suite", "metric", "label", "seed", "query", "value"])


def test_only_a_difference_of_three_shared_seeds_is_bold() -> None:
    """However sure the interval of fewer seems; and it takes nothing from the others."""
    three, other = (0, 1, 2), (2, 3, 4)
    outcomes = seeded({"N/A[R]": other, "EST[R]": three, "ACT[R]": three})
    protects, more = (line[-1] for line in claims.Statements(outcomes).claims()[1][:2])
    assert protects.startswith("yes +1.0 ")
    assert protects.endswith(" (1 seed)")
    assert more.startswith("**yes** +1.0 ")


@pytest.mark.parametrize(("shared", "count"), [(3, 2), (2, 0)])
def test_an_order_takes_three_seeds_that_all_models_have(shared: int, count: int) -> None:
    other = tuple(range(5 - shared, 10 - shared))
    found = orders(seeded({"a": (0, 1, 2, 3, 4), "b": other}), ())
    assert [one.name for one in found.get("auto", [])] == ["b", "a"][:count]


@pytest.mark.parametrize(("low", "verdict"), [(0.04, "open"), (0.06, "yes")])
def test_a_verdict_is_that_of_the_interval_as_shown(low: float, verdict: str) -> None:
    found = Difference(1.9, low, 3.7, 0.04)
    assert str(claims.Measured(found, 5)).startswith(f"{verdict} +1.9 [{low:.1f}, 3.7]")


def test_holms_correction_rejects_one_after_the_other() -> None:
    """Of 4: p is held against 5%/4, 5%/3, 5%/2 and 5%, and the first that is larger ends it."""
    keys = [(claims.Claim(str(n), "a", "b"), "auto", False) for n in range(4)]
    for ps, count in (
        ((0.012, 0.016, 0.024, 0.05), 4),
        ((0.012, 0.016, 0.026, 0.04), 2),
        ((0.013, 0.0001, 0.4, 0.02), 3),
        ((0.02, 0.02, 0.02, 0.02), 0),
    ):
        rejected = claims.holm(dict(zip(keys, ps, strict=True)))
        assert rejected == set(sorted(keys, key=lambda k: ps[keys.index(k)])[:count])


def test_a_radius_is_compared_where_both_are_right() -> None:
    """Each model is wrong on one query of its own; the radius of that counts as 0."""
    radius = {"a": [0.0, 5.0, 9.0, 4.0], "b": [3.0, 0.0, 5.0, 2.0]}
    rows = [
        (suite, metric, label, seed, query, value)
        for label, values in radius.items()
        for seed in (0, 1)
        for query, one in enumerate(values)
        for suite, metric, value in (("auto", "Radius", one), ("", "R@1", 100.0 * (one > 0)))
    ]
    rows += [("", "R@1", label, seed, 4, 100.0) for label in "ab" for seed in (0, 1)]  # no radius
    columns = ["suite", "metric", "label", "seed", "query", "value"]
    outcomes = pd.DataFrame(rows, columns=columns)
    claim = claims.Claim("", "a", "b", "Radius")
    assert "+2.0" in str(claims.measured(claims.by_model(outcomes), claim, "auto"))
    assert "+3.0" in str(claims.measured(claims.by_model(outcomes), claim, "auto", right=True))


def test_the_score_without_an_attack_is_of_the_outcomes_before_it() -> None:
    cells = model(label="a", suite="strict")
    for one in cells:
        for name in one.metrics:
            one.findings["clean"] = {name: FULL.get(name, 0.0) / 2}
    (entry,) = measured(tidy(cells))
    assert unattacked(entry) == pytest.approx(ers({k: v / 2 for k, v in FULL.items()}))


def test_a_model_is_finished_with_a_score_under_each_suite_and_a_radius() -> None:
    cells = [c for suite in SUITES for c in model({"ERS": 20.0}, label="a", suite=suite)]
    assert collect.finished(cells) == []
    cells.append(attacked("Radius", 3.0, label="a", suite="auto"))
    other = model({"ERS": 30.0}, label="b", suite="auto", resolved="other")
    assert collect.finished([*cells, *other]) == cells
    assert collect.finished([failed("Radius", "no", label="a", suite="auto"), *cells[:-1]]) == []


def test_photographs_have_a_line_for_each_radius_and_the_radius_once(tmp_path: Path) -> None:
    cells = model(label="a", suite="strict")
    for name, value in FULL.items():
        cells.append(attacked(name, value / 2, changed="eps=4/255,alpha=1/255", label="a"))
    cells.append(attacked("ERS", 60.0, changed="restarts=5", label="a"))
    cells.append(attacked("Radius", 3.0, label="a", suite="auto"))
    cells += [*model({"CA+": 3.0}, label="b", suite="auto"), attacked("Radius", 2.0, label="b")]
    page = photographs(write(tmp_path / "grocery.csv", cells)).splitlines()[2:]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page]
    assert [line[:2] for line in lines] == [["a", "8/255"], ["a", "4/255"]]  # b has no score
    half = ers({name: value / 2 for name, value in FULL.items()})
    assert [line[3].partition(" ")[0] for line in lines] == [f"{ers(FULL):.1f}", f"{half:.1f}"]
    assert [line[2].partition(" ")[0] for line in lines] == ["80.0", ""]
    assert [line[7].partition(" ")[0] for line in lines] == ["3.0", ""]


def test_outcomes_are_those_of_the_protocols_scores(tmp_path: Path) -> None:
    store = Store(tmp_path)
    cells = [
        *(attacked("ERS", 20.0, changed=changed, label="a") for changed in ("", "eps=4/255")),
        *model({}, label="a"),
    ]
    for one in cells:
        store.put(one, {name: np.array([np.nan, 1.0, 2.0]) for name in one.metrics})
    found = collect.outcomes(store, cells)
    assert found[found["metric"] == "ERS"]["query"].tolist() == [1, 2]
    assert found[found["metric"] == "R@1"]["value"].tolist() == [1, 2]


def test_collected_models_join_those_that_are_there(tmp_path: Path) -> None:
    rows, queries = tmp_path / "rows.csv", tmp_path / "outcomes.parquet"
    for place, (label, value) in enumerate((("b", 30.0), ("a", 20.0), ("b", 40.0))):
        store = Store(tmp_path / str(place))
        for suite in SUITES:
            for one in model({"ERS": value, "Radius": value}, label=label, suite=suite):
                store.put(one, {name: np.array([value]) for name in one.metrics})
        done = CliRunner().invoke(collect.main, [str(store.root), str(rows), str(queries)])
        assert done.exit_code == 0, done.output
    there = read_tidy(rows)
    assert there == sorted(there, key=record_order)
    scores = {(one["label"], one["value"]) for one in there if one["metric"] == "ERS"}
    assert scores == {("a", 20.0), ("b", 40.0)}
    table = pd.read_parquet(queries)
    kept = table[table["metric"] == "ERS"]
    assert set(zip(kept["label"], kept["value"], strict=True)) == scores
    assert table.equals(table.sort_values(collect.KEYS, ignore_index=True))
