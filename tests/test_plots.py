"""Plots: the same bytes for the same table, and labels that describe the data."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dmlbench.analysis.records import tidy
from dmlbench.report import style
from dmlbench.report.board import Table, tables
from dmlbench.report.entries import measured
from dmlbench.report.plots import PLOTS, pareto
from dmlbench.report.render import boards, figures
from tests.synthetic import FULL, attacked, model

POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1)


@pytest.fixture(scope="module")
def table() -> Table:
    """Two defenses and an undefended model, a sweep over eps and steps, ranks of queries."""
    cells = []
    for label, cost, share in (("N/A[R]", 1, 0.2), ("ACT[R]", 9, 0.9), ("HM[S,<g>$_2]", 33, 1.0)):
        about = {"label": label, "training_cost": cost}
        values = {name: value * share for name, value in FULL.items()}
        cells += [c for c in model(values, **about) if c.about.attack != "ca+"]
        cells.append(attacked("CA+", 10 * share, deciles=range(0, 101, 10), **about))
        for changed in ("eps=8/255", "eps=16/255", "steps=4", "steps=8", "w=5"):
            cells.append(attacked("CA+", 30 * share, changed=changed, **about))
        withstood = [0.0] * 20 + [float(x) for x in range(1, 52)] + [1000.0] * 30
        cells.append(attacked("Square:Q", 300 * share, deciles=withstood, **about))
        fgsm = attacked("CA+", 40 * share, changed="steps=1", **about)
        resolved = fgsm.about.attack_resolved.replace("alpha=3/255", "alpha=77/255")
        cells.append(replace(fgsm, about=replace(fgsm.about, attack_resolved=resolved)))
    # the reader gives numbers where a record of cells has their text
    records = [
        r | {"deciles": tuple(map(float, r.get("deciles", "").split()))} for r in tidy(cells)
    ]
    (one,) = tables(measured(records))
    return one


@pytest.mark.parametrize("name", PLOTS)
def test_each_plot_is_the_same_bytes_again_and_says_what_was_measured(
    table: Table, name: str
) -> None:
    svgs = set()
    for _ in range(2):
        figure = PLOTS[name](table)
        assert figure is not None
        svgs.add(style.save(figure, "svg"))
    (svg,) = svgs
    text = svg.decode()
    assert "tiny, suite strict" in text
    assert "eps 77/255, 32 steps of 3/255" in text
    assert "n = 40 queries" in text
    assert str(figure.get_suptitle()) in text


def test_every_format_has_no_date_and_is_vector_where_it_can_be(table: Table) -> None:
    for kind, begins in (("pdf", b"%PDF"), ("png", b"\x89PNG"), ("svg", b"<?xml")):
        first, second = (PLOTS["terms"](table), PLOTS["terms"](table))
        assert first is not None
        assert second is not None
        content = style.save(first, kind)
        assert content == style.save(second, kind)
        assert content.startswith(begins)
        assert b"CreationDate" not in content
    assert b"<image" not in style.save(first, "svg")


def test_a_sweep_is_drawn_from_the_clean_value_to_the_protocols(table: Table) -> None:
    figure = PLOTS["eps"](table)
    assert figure is not None
    (axis,) = figure.axes
    curve = axis.lines[-1]
    assert np.allclose(curve.get_xdata(), [0, 8, 16, 77])
    shares = [30 * 0.2, 30 * 0.9, 30 * 1.0]
    drawn = sorted(float(np.asarray(line.get_ydata())[1]) for line in axis.lines)
    assert np.allclose(drawn, shares)
    assert all(np.asarray(line.get_ydata())[0] == 50 for line in axis.lines)


def test_fgsm_is_no_point_of_a_sweep_over_steps(table: Table) -> None:
    """One step has a step of eps, so it is not the same attack with fewer steps."""
    figure = PLOTS["steps"](table)
    assert figure is not None
    assert np.allclose(figure.axes[0].lines[-1].get_xdata(), [0, 4, 8, 32])


def test_the_curve_of_a_black_box_begins_at_the_clean_recall(table: Table) -> None:
    """20 of 100 queries are wrong at once, and 29 withstand all 1000 passes."""
    figure = PLOTS["withstood"](table)
    assert figure is not None
    (axis,) = figure.axes
    assert axis.get_title(loc="left") == "square"
    assert axis.get_xlabel() == "forward passes"
    line = axis.lines[-1]
    xs, ys = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    assert (xs[0], xs[-1]) == (0, 1000)
    assert (ys[0], ys[-1]) == pytest.approx((81, 29))
    assert (np.diff(ys) < 0).all()
    band = axis.collections[-1].get_paths()[0].vertices
    assert band[:, 1].min() > 10
    assert band[:, 1].max() < 95


def test_missing_numbers_are_not_plotted() -> None:
    (alone,) = tables(measured(tidy([attacked("CA+", 20)])))
    assert [name for name, plot in PLOTS.items() if plot(alone)] == ["intervals"]


def test_the_literature_is_drawn_hollow_and_has_no_intervals() -> None:
    board = next(board for board in boards([]) if board.name == "sop")
    drawn = dict(figures(board))
    assert list(drawn) == ["sop-ers-tradeoff", "sop-ers-cost", "sop-ers-terms"]
    lines = drawn["sop-ers-tradeoff"].axes[0].lines
    assert {line.get_markerfacecolor() for line in lines if line.get_marker() != "None"} == {"none"}
    assert re.search("hollow: published", style.save(drawn["sop-ers-cost"], "svg").decode())


@given(POINTS)
def test_the_front_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    """A slow twin: no other point is at least as good in both and better in one."""

    def dominated(p: tuple[int, int]) -> bool:
        return any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)

    front = pareto([(float(x), float(y)) for x, y in points])
    assert front == sorted({p for p in points if not dominated(p)})
