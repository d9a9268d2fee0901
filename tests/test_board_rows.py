"""Rows of a board: groups of those whose intervals overlap, and what is told of each row."""

from __future__ import annotations

import dataclasses
import re
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dmlbench.analysis.records import tidy
from dmlbench.report import page
from dmlbench.report.board import Board, tables
from dmlbench.report.details import command, details
from dmlbench.report.entries import Entry, Number, measured
from dmlbench.report.literature import published
from dmlbench.report.ranking import tied
from dmlbench.zoo.registry import models as zoo_models
from tests.synthetic import FULL, attacked, model, one_board

INTERVALS = st.none() | st.lists(st.integers(0, 20), min_size=2, max_size=2).map(sorted)


def with_ers(low: float | None, score: float, high: float | None, label: str = "") -> Entry:
    numbers = {"ERS": Number(score, 1, low, high)}
    return Entry("tiny", "strict", "c2f2", "N", "", label, numbers, {"ERS": "higher"}, "", "PGD")


@given(st.lists(INTERVALS, max_size=12))
def test_two_rows_share_a_group_where_their_intervals_overlap_and_nowhere_else(
    intervals: list[list[int] | None],
) -> None:
    groups = tied([with_ers(*(e[0], 1, e[1]) if e else (None, 1, None)) for e in intervals])
    shared = set()
    for (a, one), (b, other) in combinations(enumerate(intervals), 2):
        overlap = one and other and max(one[0], other[0]) <= min(one[1], other[1])
        mine, theirs = groups[a], groups[b]
        share = mine and theirs and max(mine[0], theirs[0]) <= min(mine[1], theirs[1])
        assert bool(share) == bool(overlap)
        shared |= {a, b} if overlap else set()
    assert {place for place, one in enumerate(groups) if one} == shared
    last = max((one[1] for one in groups if one), default=0)
    members = [
        {p for p, g in enumerate(groups) if g and g[0] <= n <= g[1]} for n in range(1, last + 1)
    ]
    assert not any(a < b for a in members for b in members)  # as large as they can be


def test_the_page_names_the_groups_of_rows_whose_intervals_overlap() -> None:
    ends = [(59, 60, 61), (57.5, 58.5, 59.5), (None, 58, None), (50, 57, 60), (49, 49, 49)]
    (table,) = tables([with_ers(*one, label) for one, label in zip(ends, "abpcd", strict=True)])
    found = {one.entry.label: one.tied for one in table.lines}
    # p, as published, has no interval, and d overlaps with no other
    assert found == {"a": (1, 1), "b": (1, 1), "p": None, "c": (1, 1), "d": None}
    ends[3:] = [(50, 50, 58), (49, 49, 51)]
    (table,) = tables([with_ers(*one, label) for one, label in zip(ends, "abpcd", strict=True)])
    text = page.render([Board("tiny", "", "", (table,))])
    assert re.findall('data-group="([^"]*)"', text) == ["a", "a–b", "b–c", "c"]


def test_seeds_are_tied_by_the_interval_of_their_mean() -> None:
    runs = [
        model({k: v * share for k, v in FULL.items()}, label=label, seed=seed)
        for label, shares in (("a", (0.9, 1.0)), ("b", (0.8, 0.95)))
        for seed, share in enumerate(shares)
    ]
    board = one_board(*(c for run in runs for c in run))
    for line in board.tables[0].lines:
        interval, number = line.entry.interval("ERS"), line.entry.numbers["ERS"]
        assert interval is not None
        assert number.spread is not None
        # Student's t of one degree of freedom: 12.706
        assert interval[1] - number.value == pytest.approx(12.7062 * number.spread / 2**0.5)
    assert [line.tied for line in board.tables[0].lines] == [(1, 1), (1, 1)]


def test_what_is_behind_a_row_says_its_words_command_and_origin() -> None:
    about = {"defense": "hm:eta=2", "resolved": "hm:eta=2", "label": "HM", "recipe": "epochs=2"}
    (entry,) = measured(tidy(model(dataset="fashion-mini", **about)))
    found = details(entry)
    assert found["Command"] == (
        "dmlbench run --dataset fashion-mini --defense hm:eta=2 --model c2f2 --recipe epochs=2 "
        "--suite strict --seed 0"
    )
    some = model({"CA+": 20.0}, dataset="fashion-mini", **about)
    (entry,) = measured(tidy([*some, attacked("CA+", 9, "w=5", dataset="fashion-mini", **about)]))
    assert command(entry).endswith("--suite strict --attack ca+ --attack ca+:w=5 --seed 0")
    assert "Hardness" in found["Defense"]
    assert "eta = 2 (" in found["Defense"]
    assert found["Date"] == "1970-01-01"
    assert "Model card" not in found
    sha256 = zoo_models()["fashion/hm"].manifest.sha256
    (record,) = entry.records["R@1"]
    of_the_zoo = {"R@1": [record | {"checkpoint_sha256": sha256}]}
    carded = details(dataclasses.replace(entry, records=of_the_zoo))
    assert carded["Model card"] == ["dmlbench zoo fashion/hm"]
    literature = details(published()[0])
    assert literature["Paper"][1].startswith("https://arxiv.org/")
    assert "Command" not in literature


def test_a_row_of_another_seed_of_attacks_has_its_adversary_and_no_command_of_run() -> None:
    changed = [
        replace(c, about=replace(c.about, attack=f"{c.about.attack}:attack_seed=5"))
        if c.about.attack else c
        for c in model()
    ]  # fmt: skip
    (entry,) = measured(tidy(changed))
    assert entry.threat == "eps 77/255, 32 steps of 3/255"
    assert command(entry) == ""


def test_the_adversary_is_told_with_the_optimizer_that_searched_for_it() -> None:
    by_apgd = "radius:eps=77/255,alpha=154/255,steps=32,suite=strict,optimizer=apgd"
    radius = attacked("Radius", 4)
    radius = replace(radius, about=replace(radius.about, attack_resolved=by_apgd))
    top1 = attacked("Top1", 4)
    of_more = by_apgd.replace("radius", "top1").replace("32", "100")
    top1 = replace(top1, about=replace(top1.about, attack_resolved=of_more))
    both = "eps 77/255, 100 steps (radius: 32 steps)"
    for cells, said in (
        ([radius, top1], f"White-box APGD in the L∞ ball, {both}."),
        ([radius], "White-box APGD in the L∞ ball, eps 77/255, 32 steps."),
        ([radius, *model()], "White-box PGD in the L∞ ball, eps 77/255, 32 steps of 3/255."),
    ):
        (table,) = one_board(*cells).tables
        assert [note for note in table.notes if note.startswith("White-box")] == [said]


def test_the_adversary_in_linf_is_not_that_in_l2_and_its_steps_are_in_grey_levels() -> None:
    certified = attacked("CR", 4)
    in_l2 = "certified:eps=2,alpha=0.25,steps=20"
    about = replace(certified.about, attack="certified", attack_resolved=in_l2)
    uap = attacked("UAP:R", 4, "eps=8/255,alpha=0.0031372549019607846,steps=500")
    cells = replace(certified, about=about), replace(uap, about=replace(uap.about, attack="uap"))
    (table,) = one_board(*cells).tables
    said = "White-box PGD in the L∞ ball, eps 8/255, 500 steps of 0.8/255."
    assert said in table.notes
