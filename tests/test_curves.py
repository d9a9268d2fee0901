"""Curves over eps of a query, and sweeps over eps and steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text
from msgspec.structs import replace
from scipy.stats import binomtest

from dmlbench.analysis.records import scores as scores_of
from dmlbench.analysis.records import tidy
from dmlbench.metrics.bootstrap import shares_above
from dmlbench.metrics.ers import ers
from dmlbench.report import style
from dmlbench.report.board import Table, tables
from dmlbench.report.entries import measured
from dmlbench.report.plots import PLOTS
from dmlbench.storage.cell import Cell
from tests.synthetic import FULL, attacked, model, swept


@pytest.fixture(scope="module")
def table() -> Table:
    return swept()


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


def test_a_step_that_varies_with_the_radius_is_named() -> None:
    for alpha, said in (("", "here eps varies"), (",alpha=1/255", "here eps and alpha vary")):
        changes = (f"eps={eps}/255{alpha}" for eps in (8, 16))
        cells = [*model(), *(attacked("CA+", 30, changed=changed) for changed in changes)]
        figure = PLOTS["eps"](tables(measured(tidy(cells)))[0])
        assert figure is not None
        texts = [text.get_text() for text in figure.findobj(Text)]
        assert [text for text in texts if text.endswith(said)], texts


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


def test_a_score_is_drawn_at_the_radius_of_its_own_attacks() -> None:
    """Not at that of another attack of the model, whose ball may be in L2."""
    cells = [attacked("Certified", 0.3, f"eps={eps}") for eps in (2, 3, 4)]
    cells[0] = replace(cells[0], about=replace(cells[0].about, attack="certified"))
    for eps in ("", "eps=4/255", "eps=2/255"):
        cells += [attacked(name, 20, eps) for name in ("ES:R", "LTM", "GTM")]
        worst = attacked("Robust R@1", 15, eps)
        attack = worst.about.attack.replace("robust r@1", "worst case")
        cells.append(replace(worst, about=replace(worst.about, attack=attack, attack_resolved="")))
    figure = PLOTS["eps"](tables(measured(tidy(cells)))[0])
    assert figure is not None
    drawn = {
        axis.get_title(loc="left"): axis.lines[0].get_xdata().tolist()
        for axis in figure.axes
        if axis.lines
    }
    assert drawn["Robust R@1 ↑"] == [0, 2, 4, 77]
    assert not any("Certified" in title for title in drawn)


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
