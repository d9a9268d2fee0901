"""Colours, dashes, and where names stand beside points."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from dmlbench.analysis.records import tidy
from dmlbench.report import style
from dmlbench.report.board import tables
from dmlbench.report.entries import measured
from tests.synthetic import model


def test_points_that_lie_close_all_have_a_name_that_covers_nothing() -> None:
    """Seven points of fashion-mini under auto, and the line of the front."""
    points = [
        (74.7, 21.0, "CA-TRIDE, η=16"), (77.7, 20.5, "HM[S,M], η=8"),
        (78.8, 19.3, "HM[S,g_LGA]&ICS, η=8"), (74.9, 18.6, "ACT[S], η=8"),
        (78.1, 17.9, "HM[S,g_LGA], η=8"), (62.6, 18.4, "GOAT[R], η=8"), (75.5, 5.7, "N/A[R]"),
    ]  # fmt: skip
    with style.figure(5.6, 4.4) as fig:
        axis = fig.add_subplot()
        axis.margins(0.1)
        axis.step(*zip(*[point[:2] for point in points[:3]], strict=True), where="pre", ls="--")
        for x, y, _ in points:
            axis.plot([x], [y], ls="", marker="o")
        style.name_points(axis, points)
        fig.draw_without_rendering()
        assert [text.get_text() for text in axis.texts] == [name for *_, name in points]
        boxes = [Text.get_window_extent(text) for text in axis.texts]
        others = [*style._markers(axis), *boxes]
        assert len(others) == 14
        for box in boxes:
            assert [other for other in others if box.overlaps(other)] == [box]
            assert not any(line.intersects_bbox(box, filled=False) for line in style._lines(axis))


@given(st.lists(st.floats(0, 200), min_size=1, max_size=8).map(sorted))
def test_names_are_moved_as_little_as_keeps_them_apart(heights: list[float]) -> None:
    """Those that have room stay; a block of others is centred on its points unless it lies low."""
    found = style.moved_apart(heights)
    assert all(b - a >= style.LINE - 1e-9 for a, b in itertools.pairwise(found))
    assert found[0] >= style.LINE / 2 - 1e-9
    cuts = [i for i, (a, b) in enumerate(itertools.pairwise(found), 1) if b - a > style.LINE + 1e-6]
    for first, last in itertools.pairwise([0, *cuts, len(found)]):
        centre = np.mean(heights[first:last])
        lowest = style.LINE / 2 * (last - first)
        if first == 0:
            centre = max(centre, lowest)
        assert np.mean(found[first:last]) == pytest.approx(centre, abs=1e-6)


def test_names_at_the_ends_stand_by_their_points_and_cover_no_other() -> None:
    """Models of fashion-mini under auto. Names of another cost do not move one."""
    nine = [25.9, 24.8, 24.3, 23.3, 20.5, 20.3, 19.5, 19.3, 18.6, 18.4, 17.9, 11.8]
    points = [(9.0, y, f"HM {y}") for y in nine]
    points += [(1.0, 5.7, "N/A[R]"), (1.0, 5.6, "a"), (2.0, 19.9, "FAST[R]"), (17.0, 21.0, "TRIDE")]
    with style.figure(5.2, 3.8) as fig:
        axis = fig.add_subplot()
        axis.set_xscale("log", base=2)
        for x, y, _ in points:
            axis.plot([x], [y], ls="", marker="o")
        style.name_ends(axis, points)
        fig.draw_without_rendering()
        texts = {text.get_text(): text for text in axis.texts}
        assert texts.keys() == {name for *_, name in points}
        boxes = {name: Text.get_window_extent(text) for name, text in texts.items()}
        for name, box in boxes.items():
            assert [other for other in boxes if box.overlaps(boxes[other])] == [name]
            assert box.y0 >= axis.get_window_extent().y0 - 1
        order = sorted((name for x, _, name in points if x == 9), key=lambda one: boxes[one].y0)
        assert order == [name for *_, name in sorted(points[:12], key=lambda point: point[1])]
        for x, y, name in (*points[14:], points[11]):
            there = axis.transData.transform((x, y))[1]
            assert (boxes[name].y0 + boxes[name].y1) / 2 == pytest.approx(there, abs=2)


def test_lines_of_one_family_have_other_dashes() -> None:
    labels = ["FAST[R]", "FREE[R]", "AMD[R]", "GOAT[R]", "HEAD[R]", "CA-TRIDE"]
    (table,) = tables(measured(tidy([c for label in labels for c in model(label=label)])))
    entries = [line.entry for line in table.lines]
    looks = {(style.family(e).color, str(style.dashes(entries)[id(e)])) for e in entries}
    assert len(looks) == len(labels)


def test_where_no_family_is_known_all_are_drawn_and_look_different() -> None:
    labels = ["FAST[R]", "AMD[R]", "GOAT[R]", "HEAD[R]", "CA-TRIDE"]
    (table,) = tables(measured(tidy([c for label in labels for c in model(label=label)])))
    entries = [line.entry for line in table.lines]
    assert style.families(entries) == {id(e): style.family(e) for e in entries}
    assert len(style.best_of_families(entries)) == 2
    others = [e for e in entries if style.family(e) == style.OTHER]
    assert style.best_of_families(others) == others
    for part in ("color", "marker"):
        looks = {getattr(kind, part) for kind in style.families(others).values()}
        assert len(looks) == len(others) == 4
