"""Plots: the same bytes for the same table, and labels that describe the data."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text
from msgspec.structs import replace
from scipy.stats import binomtest

from dmlbench.analysis.records import scores as scores_of
from dmlbench.analysis.records import tidy
from dmlbench.metrics.bootstrap import Estimate, shares_above
from dmlbench.metrics.ers import ers
from dmlbench.report import style
from dmlbench.report.board import Table, tables
from dmlbench.report.entries import measured
from dmlbench.report.plots import ACROSS, PLOTS, pareto
from dmlbench.report.render import boards, figures
from dmlbench.storage.cell import Cell
from tests.cells import cell
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
        curve = [(0, 80), (2.0, 60 * share), (9.0, 20 * share), (77.0, 0)]
        cells.append(attacked("Radius", 20 * share, curve=curve, **about))
        for changed in ("eps=8/255", "eps=16/255", "steps=4", "steps=8", "w=5"):
            cells.append(attacked("CA+", 30 * share, changed=changed, **about))
        fgsm = attacked("CA+", 40 * share, changed="steps=1", **about)
        resolved = fgsm.about.attack_resolved.replace("alpha=3/255", "alpha=77/255")
        cells.append(replace(fgsm, about=replace(fgsm.about, attack_resolved=resolved)))
    (one,) = tables(measured(tidy(cells)))
    return one


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


def test_the_curve_of_the_radius_is_a_step_function_with_a_band(table: Table) -> None:
    figure = PLOTS["curves"](table)
    assert figure is not None
    (axis,) = figure.axes
    line = next(one for one in axis.lines if "HM" in str(one.get_label()))
    assert list(line.get_xdata()) == [0, 2, 9, 77]
    assert list(line.get_ydata()) == [80, 60, 20, 20]  # right at eps: broken nowhere that is known
    assert len(axis.collections) == 3
    assert axis.get_ylim() == (0, 100)
    assert axis.get_xlim() == (0, 77)
    band = axis.collections[[one.get_label() for one in axis.lines].index(line.get_label())]
    ys = band.get_paths()[0].vertices[:, 1]
    inside = binomtest(24, 40).proportion_ci(method="wilson")
    assert np.isclose(ys, 100 * inside.low).any()
    assert np.isclose(ys, 100 * inside.high).any()


def test_two_curves_of_one_attack_are_in_one_panel() -> None:
    """Over an L2 length, which is no part of 255."""
    cells = model(FULL, label="N/A[R]")
    for name, end in (("Certified", 0.1), ("Smoothed", 0.25)):
        curve = [(0, 80), (end, 20), (0.3, 0)]
        cells.append(attacked(name, 0.1, changed="eps=0.3", curve=curve, label="N/A[R]"))
    figure = PLOTS["curves"](tables(measured(tidy(cells)))[0])
    assert figure is not None
    (axis,) = figure.axes
    assert axis.get_xlabel() == "eps, an L2 length"
    labels = [str(line.get_label()).partition(": ")[2] for line in axis.lines]
    assert labels == ["Certified", "Smoothed"]
    assert axis.lines[0].get_linestyle() != axis.lines[1].get_linestyle()
    assert list(axis.lines[0].get_xdata()) == [0, 0.1, 0.3]


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.5, 77.0, float("nan")]), min_size=1))
def test_shares_above_counts_the_values_above_each_step(values: list[float]) -> None:
    known = [v for v in values if v == v]
    if not known:
        return
    points = shares_above(values)
    assert [x for x, _ in points] == sorted({0.0, *known})
    for x, share in points:
        assert share == pytest.approx(100 * sum(v > x for v in known) / len(known))


def test_shares_above_is_thinned_to_quantiles_where_there_are_many_steps() -> None:
    values = np.random.default_rng(0).permutation(5000) + 1.0
    points = shares_above(values)
    assert len(points) == 102
    assert points[0] == (0, 100)
    assert points[-1] == (5000, 0)
    for x, share in points:
        assert share == pytest.approx(100 * (values > x).mean())


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
    (legend,) = figure.legends
    swept = [line.entry for line in table.lines if "CA+ (eps=8/255)" in line.entry.numbers]
    assert len(legend.get_texts()) == len(swept) > 1
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


def test_scores_at_other_radii_are_part_of_the_sweep() -> None:
    cells = model(label="a")
    for eps, share in (("8/255", 1.5), ("16/255", 1.2)):
        for name, value in FULL.items():
            cells.append(attacked(name, value * share, changed=f"eps={eps}", label="a"))
    (table,) = tables(measured(tidy(cells)))
    (entry,) = (line.entry for line in table.lines)
    assert entry.numbers["ERS (eps=8/255)"].value == pytest.approx(
        ers({name: value * 1.5 for name, value in FULL.items()})
    )
    wrong = attacked("ERS", 40.0, changed="eps=8/255", label="a")  # drawn from other columns
    (table,) = tables(measured(tidy([*cells, wrong])))
    assert table.lines[0].entry.numbers["ERS (eps=8/255)"] == entry.numbers["ERS (eps=8/255)"]
    for changed in ("", "eps=8/255", "eps=16/255"):
        name = f"ERS ({changed})" if changed else "ERS"
        cells.append(attacked("ERS", entry.numbers[name].value, changed=changed, label="a"))
    (table,) = tables(measured(tidy(cells)))
    figure = PLOTS["eps"](table)
    assert figure is not None
    drawn = {
        axis.get_title(loc="left"): axis.lines[0].get_xdata().tolist()
        for axis in figure.axes
        if axis.lines
    }
    assert drawn["ERS ↑"][-3:] == [8, 16, 77]
    assert scores_of(["ERS", "R@1", "ERS (eps=8/255)", "Robust R@1"]) == [
        *("Robust R@1", "ERS", "ERS (eps=8/255)"),
    ]


def test_a_sweep_has_no_point_that_a_seed_lacks() -> None:
    """An ERS of one seed alone would be ranked: it has neither number, record nor flag."""
    cells = []
    for seed in (0, 1):
        values = {k: v for k, v in FULL.items() if seed == 0 or k != "GTT"}
        cells += model(values, seed=seed)
        for eps in ("4/255", "8/255", "16/255", "32/255")[seed:]:
            cells.append(attacked("CA+", 30, changed=f"eps={eps}", seed=seed))
    score = attacked("ERS", ers(FULL), seed=0)
    score.findings["flags"] = [{"name": "odd", "says": "it is odd", "remedy": "look"}]
    cells.append(score)
    (table,) = tables(measured(tidy(cells)))
    (entry,) = (line.entry for line in table.lines)
    assert "ERS" not in {*entry.numbers, *entry.records, *entry.flags}
    figure = PLOTS["eps"](table)
    assert figure is not None
    (axis,) = figure.axes
    assert np.allclose(axis.lines[0].get_xdata(), [0, 8, 16, 32, 77])


def test_missing_numbers_are_not_plotted() -> None:
    (alone,) = tables(measured(tidy([attacked("CA+", 20)])))
    assert [name for name, plot in PLOTS.items() if plot(alone)] == ["intervals"]


def test_the_literature_is_drawn_hollow_and_has_no_intervals() -> None:
    board = next(board for board in boards([]) if board.name == "sop")
    drawn = dict(figures(board))
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
    found = style.spread(heights)
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


def test_a_curve_that_reaches_zero_stays_there_up_to_eps() -> None:
    cells = [attacked("Radius", 4, curve=[(0, 80), (2.0, 30), (9.0, 0)])]
    (table,) = tables(measured(tidy(cells)))
    figure = PLOTS["curves"](table)
    assert figure is not None
    (line,) = figure.axes[0].lines
    assert list(line.get_xdata()) == [0, 2, 9, 77]
    assert list(line.get_ydata()) == [80, 30, 0, 0]
    assert figure.axes[0].get_xlim() == (0, 13.5)  # nothing is left from 9 on: the rest is empty


def with_curves(cells: list[Cell]) -> Table:
    """The table of cells."""
    return tables(measured(tidy(cells)))[0]


def test_of_many_curves_the_best_of_each_family_are_drawn_and_their_attack_is_named() -> None:
    curve, cells = [(0, 80), (2.0, 30), (9.0, 0)], []
    for number in range(9):
        about = {"label": f"HM[{number}]", "defense": f"hm:margin={number}", "training_cost": 1}
        cells += model(FULL | {"CA+": 10.0 - number}, **about)
        cells.append(attacked("Radius", 4, changed="steps=50", curve=curve, **about))
        cells[-1] = replace(cells[-1], about=replace(cells[-1].about, attack="radius"))
    about = {"label": "N/A[R]", "training_cost": 1}
    cells += [*model(FULL | {"CA+": 0.5}, **about), attacked("Radius", 4, curve=curve, **about)]
    every = PLOTS["curves"](with_curves(cells))
    assert every is not None
    assert [line.get_label() for line in every.axes[0].lines] == ["N/A[R]", "HM[0]"]
    assert "the best of each family by ERS" in style.save(every, "svg").decode()
    assert "radius eps 77/255, 50 steps" in style.save(every, "svg").decode()
    few = PLOTS["curves"](with_curves([c for c in cells if c.about.label <= "HM[3]"]))
    assert few is not None
    assert len(few.axes[0].lines) == 4
    assert "best" not in str(few.get_suptitle())


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
