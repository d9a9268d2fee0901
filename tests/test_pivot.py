"""``show``: conditions of ``--where``, filters and pivots."""

from __future__ import annotations

import pytest

from dmlbench.analysis.pivot import chosen, column, pivot
from dmlbench.analysis.records import TIDY_COLUMNS, tidy
from dmlbench.analysis.where import Condition, condition
from dmlbench.common.errors import UserError
from tests.cells import cell


def where(*texts: str) -> list[Condition]:
    return [condition(text, TIDY_COLUMNS) for text in texts]


@pytest.mark.parametrize(
    ("pattern", "text", "met"),
    [
        ("hm*", "HM[S,g_LGA]", True),
        ("HM[S,*]", "hm[s,0]", True),
        ("HM[S]", "HMS", False),
        ("ca?", "ca+", False),
        ("ca", "ca+", False),
        ("*", "", True),
        ("", "x", False),
        ("*a*b*", "xaybz\nw", True),
        ("act[r]|hm[s,*]", "HM[S,0]", True),
        ("act[r]|hm[s,*]", "ACT[R]", True),
        ("act[r]|hm[s,*]", "ACT[S]", False),
    ],
)
def test_a_condition_is_of_any_case_and_a_star_is_any_text(
    pattern: str, text: str, met: bool
) -> None:
    assert condition(f"k={pattern}", ["k"]).meets("no such text", text) is met


def test_a_condition_finds_a_folder_by_any_spelling_of_its_path() -> None:
    one = condition("dataset=fashion|folder:root=./photos/", ["dataset"])
    assert one.meets("folder:root=photos")
    assert not one.meets("folder:root=photos2")


def test_filters_and_pivots() -> None:
    cells = [cell(m, 10 * s + i, seed=s) for s in (0, 1) for i, m in enumerate(["CA+", "CA-"])]
    assert len(chosen(cells, where("metric=ca*", "seed=1"))) == 2
    (one,) = chosen(cells, where("metric=CA-", "seed=0"))
    assert list(one.metrics) == list(one.columns) == ["CA-"]
    assert chosen(cells, where("label=HM[S,G_lga]*")) == cells
    table = pivot(tidy(cells), ["label"], ["metric"])
    (line,) = table.values()
    assert {name: value.mean for (name,), value in line.items()} == {"CA+": 5, "CA-": 6}
    assert line["CA+",].n == 2
    with pytest.raises(UserError, match=r"2 values.*differ in.*metric"):
        pivot(tidy(cells), ["label"], ["seed"])
    newer = cell("CA+", 99, seed=0, versions={"attack_version": 9})
    assert pivot(tidy([*cells[:1], newer]), ["seed"], ["metric"])["0",]["CA+",].mean == 99
    scores = [cell("ERS", v, attack=a) for v, a in ((30, "ERS"), (40, "ERS:eps=4/255"))]
    with pytest.raises(UserError, match="2 values fall into one place: they differ in attack;"):
        pivot(tidy(scores), ["label"], ["metric"])
    with pytest.raises(UserError, match="did you mean 'metric'"):
        column("metrics")
    with pytest.raises(UserError, match="key=value"):
        where("CA+")
    with pytest.raises(UserError, match="unknown key of --where 'metrics': did you mean 'metric'"):
        where("metrics=CA+")
