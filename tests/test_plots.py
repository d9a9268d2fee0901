"""Plots: the same bytes for the same table, and labels that describe the data."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlbench.analysis.records import tidy
from dmlbench.core.protocol import SUITES
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.report import style
from dmlbench.report.board import Table, tables
from dmlbench.report.drawing import named
from dmlbench.report.entries import measured
from dmlbench.report.plots import ACROSS, PLOTS, ROWS, figure_of, pareto
from dmlbench.report.render import boards
from dmlbench.storage.cell import Cell
from tests.cells import cell
from tests.synthetic import FULL, attacked, many, model, swept

POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1)


@pytest.fixture(scope="module")
def table() -> Table:
    return swept()


@pytest.mark.parametrize("name", [name for name in PLOTS if name != "eta"])
@pytest.mark.slow
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
    assert "eps 77/255, 32 steps" in text
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


def test_missing_numbers_are_not_plotted() -> None:
    (alone,) = tables(measured(tidy([attacked("CA+", 20)])))
    assert [name for name, plot in PLOTS.items() if plot(alone)] == ["intervals"]


def test_the_literature_is_drawn_hollow_and_has_no_intervals() -> None:
    board = next(board for board in boards([]) if board.name == "sop")
    plots = ((name, figure_of(plot, shown)) for name, plot, shown in named(board))
    drawn = {name: figure for name, figure in plots if figure is not None}
    assert list(drawn) == [f"sop-ers-{name}" for name in ("tradeoff", "cost", "eta", "terms")]
    lines = drawn["sop-ers-tradeoff"].axes[0].lines
    assert {line.get_markerfacecolor() for line in lines if line.get_marker() != "None"} == {"none"}
    assert re.search("hollow: published", style.save(drawn["sop-ers-cost"], "svg").decode())


def at_two_etas(spec: str, *scores: float, label: str = "HM[S,g_LGA]&ICS") -> list[Cell]:
    """Models that differ in eta alone, 2 and 8, with an ERS that rises with it."""
    found = []
    for eta, share in zip((2, 8), scores, strict=True):
        defense = ",".join(filter(None, (spec, f"eta={eta}")))
        about = {"label": label, "training_cost": eta + 1, "defense": f"hm:{defense}"}
        found += model({name: value * share for name, value in FULL.items()}, **about)
    return found


def test_a_line_joins_models_that_differ_in_eta_alone() -> None:
    """Two lambdas of one label are two lines, in both plots over eta, and are told apart."""
    cells = at_two_etas("", 0.5, 0.9) + at_two_etas("ics=0.1", 0.7, 1.0)
    cells += at_two_etas("", 0.3, 0.4, label="ACT[R]")
    cells += model({n: v * 0.8 for n, v in FULL.items()}, label="EST[R]", training_cost=9)
    (table,) = tables(measured(tidy(cells)))
    entries = [line.entry for line in table.lines]
    ers = {(e.label, e.defense): e.numbers["ERS"].value for e in entries}
    label = "HM[S,g_LGA]&ICS"
    expected = {
        f"{label}, ics=0.1": [ers[label, f"hm:ics=0.1,eta={eta}"] for eta in (2, 8)],
        label: [ers[label, f"hm:eta={eta}"] for eta in (2, 8)],
        "ACT[R]": [ers["ACT[R]", f"hm:eta={eta}"] for eta in (2, 8)],
    }
    figure = PLOTS["eta"](table)
    assert figure is not None
    left, right = figure.axes
    for axis in (left, right):
        drawn = {str(line.get_label()): list(line.get_ydata()) for line in axis.lines}
        assert drawn == expected
    assert all(list(line.get_xdata()) == [3, 9] for line in left.lines)
    assert all(list(line.get_xdata()) == [80, 80] for line in right.lines)
    figure = PLOTS["cost"](table)
    assert figure is not None
    joined = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2
              and line.get_marker() == "None"]  # fmt: skip
    assert sorted(list(line.get_ydata()) for line in joined) == sorted(expected.values())
    assert {text.get_text() for text in figure.axes[0].texts} == set(expected)
    alone = tables(measured(tidy(model(label="HM[S,M]", training_cost=9))))[0]
    assert PLOTS["eta"](alone) is None


def test_a_defense_without_pgd_steps_costs_one_pass() -> None:
    cells = model(label="FREE[R]", training_cost=1, resolved="free:eps=8/255")
    cells += model(label="EST[R]", training_cost=9) + model(
        label="mine", training_cost=0, resolved=""
    )
    figure = PLOTS["cost"](tables(measured(tidy(cells)))[0])
    assert figure is not None
    drawn = [x for line in figure.axes[0].lines for x in line.get_xdata()]
    assert sorted(drawn) == [1, 9]


def test_a_caption_says_how_many_models_are_left_out() -> None:
    (table,) = tables(measured(tidy(many(ROWS + 3))))
    figure = PLOTS["intervals"](table)
    assert figure is not None
    words = " ".join(text.get_text() for text in figure.texts).replace("\n", " ")
    assert f"the first {ROWS} of {ROWS + 3} models" in words


def test_an_axis_is_no_narrower_than_what_tables_print() -> None:
    """A CA- of 99.999992 to 99.99999995 once had ticks of 1e-6 from 9.999999e1."""
    cells = [attacked("CA-", 99.99999), attacked("TMA", 0.99895)]
    for one, width in zip(cells, (1e-5, 1e-5), strict=True):
        (name,) = one.metrics
        value = one.metrics[name].value
        one.metrics[name] = Estimate(value, value - width, value + width, 40)
    (table,) = tables(measured(tidy(cells)))
    figure = PLOTS["intervals"](table)
    assert figure is not None
    figure.draw_without_rendering()
    spans = {a.get_title(loc="left")[:3]: np.ptp(a.get_xlim()) for a in figure.axes if a.axison}
    assert spans["CA-"] == pytest.approx(0.1)
    assert spans["TMA"] == pytest.approx(0.001)
    assert not any(axis.xaxis.get_offset_text().get_text() for axis in figure.axes)


def test_names_in_legends_tell_apart_what_shares_a_label() -> None:
    cells = []
    for spec in ("hm:eta=8", "hm:eta=8,ics=0.1", "hm:eta=8,margin=0.3"):
        cells += model(label="HM[S,g_LGA]&ICS", training_cost=9, defense=spec)
    cells += model(label="HM[S,M]", training_cost=9, defense="hm:destination=semihard,eta=8")
    (table,) = tables(measured(tidy(cells)))
    figure = PLOTS["intervals"](table)
    assert figure is not None
    assert {text.get_text() for text in figure.axes[0].get_yticklabels()} == {
        "HM[S,g_LGA]&ICS, η=8",
        "HM[S,g_LGA]&ICS, η=8, ics=0.1",
        "HM[S,g_LGA]&ICS, η=8, margin=0.3",
        "HM[S,M], η=8",
    }


def test_a_long_heading_takes_lines_and_not_the_width_of_the_panels() -> None:
    cells = model()
    other = cell("Transfer", 80, attack=f"transfer:from={'efficientnet-' * 4}x@12345678")
    other.metrics["Transfer"] = Estimate(80.0, 75.0, 85.0, 40)
    (table,) = tables(measured(tidy([*cells, other])))
    figure = PLOTS["intervals"](table)
    assert figure is not None
    figure.draw_without_rendering()
    drawn = [axis for axis in figure.axes if axis.axison]
    widths = [axis.get_position().width for axis in drawn]
    assert max(widths) - min(widths) < 0.01
    (long,) = (axis for axis in drawn if "efficientnet" in axis.get_title(loc="left"))
    assert "\n" in long.get_title(loc="left")
    assert long._left_title.get_window_extent().width < 1.2 * long.bbox.width


@given(POINTS)
def test_the_front_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    """A slow twin: no other point is at least as good in both and better in one."""

    def dominated(p: tuple[int, int]) -> bool:
        return any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)

    front = pareto([(float(x), float(y)) for x, y in points])
    assert front == sorted({p for p in points if not dominated(p)})


def test_a_collapsed_model_has_no_place_among_those_that_retrieve() -> None:
    cells = [*model(label="N/A[R]"), *model(label="ACT[R]"), *model(label="X", collapsed=True)]
    (table,) = tables(measured(tidy(cells)))
    figure = PLOTS["tradeoff"](table)
    assert figure is not None
    svg = style.save(figure, "svg").decode()
    assert "ACT[R]" in svg
    assert ">X" not in svg


def test_the_suites_stand_side_by_side_in_the_order_of_the_strongest() -> None:
    shares = {"a": (0.9, 0.3), "b": (0.8, 0.6), "c": (0.7, None), "d": (None, 0.2)}
    cells = []
    for label, scores in shares.items():
        for suite, share in zip(("strict", "auto"), scores, strict=True):
            if share is not None:
                values = {name: value * share for name, value in FULL.items()}
                cells += model(values, label=label, suite=suite, training_cost=1)
    cells += [c for s in ("strict", "auto") for c in model(label="e", suite=s, collapsed=True)]
    found = tables(measured(tidy(cells)))
    figure = ACROSS["suites"](found)
    assert figure is not None
    (axis,) = figure.axes
    ers = {(t.suite, line.entry.label): line.entry.numbers["ERS"].value
           for t in found for line in t.lines}  # fmt: skip
    order = sorted("ab", key=lambda label: -ers["auto", label])  # both have two suites
    assert order != sorted("ab", key=lambda label: -ers["strict", label])
    assert [text.get_text() for text in axis.get_yticklabels()] == order
    drawn = {
        (suite, order[round(container.lines[0].get_ydata()[0])]): container.lines[0].get_xdata()[0]
        for suite, container in zip(("strict",) * 2 + ("auto",) * 2, axis.containers, strict=True)
    }
    assert drawn == {key: ers[key] for key in drawn}
    assert len(drawn) == 4
    assert ACROSS["suites"](found[:1]) is None


def test_names_across_suites_tell_apart_models_that_the_last_suite_lacks() -> None:
    cells = []
    for recipe, suites in {"": SUITES, "epochs=2": SUITES[:2], "epochs=4": SUITES[:2]}.items():
        for suite in suites:
            cells += model(label="HM[S,M]", suite=suite, recipe=recipe, training_cost=1)
    figure = ACROSS["suites"](tables(measured(tidy(cells))))
    assert figure is not None
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert sorted(names) == ["HM[S,M]", "HM[S,M], epochs=2", "HM[S,M], epochs=4"]
