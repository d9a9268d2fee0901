"""Plots of a table. Each function returns None if the table lacks the numbers for its plot."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from statistics import mean
from typing import TYPE_CHECKING

from dmlbench.metrics.ers import ERS_COLUMNS, terms
from dmlbench.metrics.names import ERS, WORST
from dmlbench.report import style
from dmlbench.report.board import Table
from dmlbench.report.columns import ranks
from dmlbench.report.curves import top1_curves
from dmlbench.report.entries import Entry
from dmlbench.report.plotted import (
    PANELS,
    apart,
    error_bar,
    flagged,
    grid,
    heading,
    left_out,
    names_of,
    passes,
    protocol,
    ranked,
    series,
)
from dmlbench.report.suites import ers_by_suite
from dmlbench.report.sweeps import against_eps, against_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Plot = Callable[[Table], "Figure | None"]

FOREST = ("R@1", ERS, WORST, *ERS_COLUMNS)
NAMED = 14  # points that all have room for a name; of more, the front and the best of each family
TITLE = 23  # letters of a line above a panel of a forest plot
ROWS = 24  # at most, of a forest plot


def tradeoff(table: Table) -> Figure | None:
    """ERS against R@1 on clean images, with the Pareto front; without collapsed models."""
    found = [e for e in ranked(table) if "R@1" in e.numbers]
    if len(found) < 2:
        return None
    points = {id(e): (e.numbers["R@1"].value, e.numbers["ERS"].value) for e in found}
    front = pareto([points[id(e)] for e in found])
    with style.figure(5.6, 4.4) as fig:
        axis = fig.add_subplot()
        axis.step(
            *zip(*front, strict=True), where="pre", color=style.INK, lw=0.8, ls="--", zorder=1
        )
        _scatter(axis, found, [points[id(e)] for e in found])
        out = [e for e in flagged(table) if "R@1" in e.numbers]
        points |= {id(e): (e.numbers["R@1"].value, e.numbers["ERS"].value) for e in out}
        xs, ys = [points[id(e)][0] for e in out], [points[id(e)][1] for e in out]
        if out:
            axis.plot(xs, ys, ls="", marker="x", color=style.INK, label="flagged")
        axis.set(xlabel="benign R@1 in % (higher is better)", ylabel="ERS (higher is better)")
        axis.margins(0.1)
        shown = sorted([*found, *out], key=lambda e: points[id(e)] not in front)  # these first
        names = names_of(shown, table)
        best = [] if len(shown) <= NAMED else style.best_of_families(found)
        named = [
            (*points[id(e)], names[id(e)])
            for e in shown
            if not best or points[id(e)] in front or e in best or e in out
        ]
        style.say(fig, "Robustness against benign retrieval", protocol(table, shown), [axis])
        style.name_points(
            axis, list({point[:2]: point for point in reversed(named)}.values())[::-1]
        )
    return fig


def cost(table: Table) -> Figure | None:
    """ERS against training cost; a line joins the models of one defense at several eta."""
    found = [e for e in ranked(table) if e.eta is not None or _plain(e)]
    ticks = sorted({passes(e) for e in found})
    if len(ticks) < 2:
        return None
    joined = [group for group in series(found) if len({passes(e) for e in group}) > 1]
    with style.figure(5.2, 3.8) as fig:
        axis = fig.add_subplot()
        dashes = style.dashes([group[0] for group in joined])
        for group in joined:
            best = {passes(e): e.numbers["ERS"].value for e in reversed(group)}
            xs, ys = zip(*sorted(best.items()), strict=True)
            color, dash = style.family(group[0]).color, dashes[id(group[0])]
            axis.plot(xs, ys, zorder=1, color=color, ls=dash)
        _scatter(axis, found, [(passes(e), e.numbers["ERS"].value) for e in found])
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        axis.minorticks_off()
        axis.set(
            xlabel="training cost: passes a training step, η + 1", ylabel="ERS (higher is better)"
        )
        ends = [max(group, key=passes) for group in joined] or found
        names = apart([e.label for e in ends], ends, {"eta"})
        named = [
            (float(passes(e)), e.numbers["ERS"].value, name)
            for e, name in zip(ends, names, strict=True)
        ]
        style.say(fig, "Robustness against training cost", protocol(table, found), [axis])
        style.name_ends(axis, named)
    return fig


def _plain(entry: Entry) -> bool:
    """True if its training is known and has no PGD steps: it costs one pass a step."""
    return entry.label.startswith("N/A") if entry.paper else entry.resolved != ""


def against_eta(table: Table) -> Figure | None:
    """ERS against training cost (left) and against benign R@1 (right), as HM's Figures 1, 6 to 8.

    A line joins the models that differ in eta alone; other models are not drawn.
    """
    found = [e for e in ranked(table) if e.eta is not None and "R@1" in e.numbers]
    joined = [group for group in series(found) if len({e.eta for e in group}) > 1]
    if not joined:
        return None
    first = [group[0] for group in joined]
    names = apart([e.label for e in first], first, {"eta"})
    dashes = style.dashes(first)
    with style.figure(7.2, 3.6) as fig:
        left, right = fig.subplots(1, 2, sharey=True)
        for group, name in zip(joined, names, strict=True):
            looks = style.marker(group[0]) | {"ls": dashes[id(group[0])], "label": name}
            group = sorted({e.eta: e for e in reversed(group)}.values(), key=passes)
            scores = [e.numbers["ERS"].value for e in group]
            left.plot([passes(e) for e in group], scores, **looks)
            right.plot([e.numbers["R@1"].value for e in group], scores, **looks)
        ticks = sorted({passes(e) for group in joined for e in group})
        left.set_xscale("log", base=2)
        left.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        left.minorticks_off()
        left.set(xlabel="training cost: passes a training step, η + 1")
        left.set(ylabel="ERS (higher is better)")
        right.set(xlabel="benign R@1 in % (higher is better, to the left)")
        right.invert_xaxis()
        shown = [e for group in joined for e in group]
        title = "Robustness against training cost and benign retrieval"
        style.say(fig, title, protocol(table, shown), [left, right])
    return fig


def ten_terms(table: Table) -> Figure | None:
    """The ten terms of ERS, from 0 (broken) to 100, for the best of each family."""
    complete = [e for e in ranked(table) if e.numbers.keys() >= set(ERS_COLUMNS)]
    found = style.best_of_families(complete)
    if not found:
        return None
    with style.figure(5.2, 4.0) as fig:
        axis = fig.add_subplot()
        names, kinds = names_of(found, table), style.families(found)
        for entry in found:
            mapped = terms({name: entry.numbers[name].value for name in ERS_COLUMNS})
            label = f"{names[id(entry)]}: ERS {entry.numbers['ERS'].text}"
            xs = [mapped[name] for name in ERS_COLUMNS]
            looks = style.marker(entry, kinds[id(entry)]) | {"ls": ""}
            axis.plot(xs, range(len(xs)), label=label, clip_on=False, **looks)
        axis.set_yticks(range(len(ERS_COLUMNS)), ERS_COLUMNS)
        axis.invert_yaxis()
        axis.set(xlim=(0, 100), xlabel="term of ERS, from 0 (broken) to 100")
        axis.grid(axis="x", visible=False)
        title = "The ten terms of ERS" + ", the best of each family" * (len(found) < len(complete))
        style.say(fig, title, protocol(table, found), [axis])
    return fig


def intervals(table: Table) -> Figure | None:
    """Forest plot: for each model (row) its values with its 95% interval."""
    every = [line.entry for line in table.lines if not line.entry.paper]
    found = every[:ROWS]
    columns = dict.fromkeys((*FOREST, *(c.name for c in table.columns if c.better)))
    shown = [n for n in columns if any(n in e.numbers and e.numbers[n].range for e in found)]
    if not shown:
        return None
    down, across = grid(len(shown))
    with style.figure(1.6 + 1.25 * across, 0.9 + down * (0.4 + 0.24 * len(found))) as fig:
        axes = list(fig.subplots(down, across, sharey=True, squeeze=False).flat)
        names = names_of(found, table)
        for axis in axes[len(shown) :]:
            axis.set_axis_off()
        for axis, name in zip(axes, shown, strict=False):
            for row, entry in enumerate(found):
                if name in entry.numbers:
                    error_bar(axis, entry, name, row, **style.marker(entry))
            title = textwrap.fill(heading(name, found), TITLE)
            axis.set_title(title, fontsize=6.5 if "(" in name else 8)
            axis.margins(x=0.15, y=0.5 / len(found))
            digits = max(e.numbers[name].digits for e in found if name in e.numbers)
            _widen(axis, 10**-digits)
            axis.locator_params(axis="x", nbins=2)
            axis.tick_params(axis="x", labelsize=7)
        axes[0].set_yticks(range(len(found)), [names[id(e)] for e in found])
        axes[0].invert_yaxis()
        words = "bars: 95% interval, over queries and seeds; of NMI the range over starts"
        if any(n in e.numbers and e.numbers[n].seeds for e in found for n in shown):
            words += "; the table names the numbers of some seeds only"
        words = "; ".join([protocol(table, found), *left_out(found, every, "models"), words])
        style.say(fig, "Measured values and their intervals", words)
    return fig


def _widen(axis: Axes, least: float) -> None:
    """Widen the x-axis to ``least``, as differences below the digits of a table mean nothing."""
    low, high = axis.get_xlim()
    if high - low < least:
        axis.set_xlim((low + high - least) / 2, (low + high + least) / 2)


def distributions(table: Table) -> Figure | None:
    """Distribution of the ranks of single queries, drawn from its deciles."""
    entries = style.best_of_families([line.entry for line in table.lines if not line.entry.paper])
    every = [n for n in ranks() if any(_deciles(e, n) for e in entries)]
    columns = every[:PANELS]
    if not columns:
        return None
    with style.figure(1.0 + 1.75 * len(columns), 2.9) as fig:
        axes = fig.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        names, kinds = names_of(entries, table), style.families(entries)
        for axis, name in zip(axes, columns, strict=True):
            for entry in entries:
                if shares := _deciles(entry, name):
                    looks = style.marker(entry, kinds[id(entry)]) | {"markersize": 3}
                    axis.plot(
                        shares, range(0, 101, 10), label=names[id(entry)], clip_on=False, **looks
                    )
            axis.set_title(heading(name, entries))
            axis.set(xlim=(0, 100), ylim=(0, 100), xlabel="rank in %")
        axes[0].set_ylabel("queries up to it, in %")
        cut = left_out(columns, every, "columns")
        words = "; ".join([protocol(table, entries), *cut, "deciles over queries"])
        style.say(fig, "Ranks that single queries reach under attack", words, axes)
    return fig


PLOTS: dict[str, Plot] = {
    "tradeoff": tradeoff,
    "cost": cost,
    "eta": against_eta,
    "terms": ten_terms,
    "intervals": intervals,
    "eps": against_eps,
    "steps": against_steps,
    "ranks": distributions,
    "curves": top1_curves,
}
ACROSS: dict[str, Callable[[Sequence[Table]], Figure | None]] = {"suites": ers_by_suite}
"""Plots of all tables of one data set together."""


def figure_of(name: str, tables: Sequence[Table]) -> Figure | None:
    """The plot ``name``, of one table or across several; None if they lack the numbers for it."""
    return ACROSS[name](tables) if name in ACROSS else PLOTS[name](*tables)


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front of ``points`` (higher is better in both), sorted by rising x.

    A point is on it if no other is at least as good in both coordinates and better in one.
    """
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points), reverse=True):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front[::-1]


def _scatter(axis: Axes, entries: Sequence[Entry], points: Sequence[tuple[float, float]]) -> None:
    """Draw a marker for each entry; the legend lists the families in their order."""
    for kind in style.FAMILIES:
        for here in (True, False):
            chosen = [
                (entry, point)
                for entry, point in zip(entries, points, strict=True)
                if style.family(entry) == kind and (entry.paper is None) == here
            ]
            if chosen:
                xs, ys = zip(*(point for _, point in chosen), strict=True)
                label = kind.name if here else f"{kind.name}, published"
                axis.plot(xs, ys, ls="", label=label, **style.marker(chosen[0][0]))


def _deciles(entry: Entry, name: str) -> list[float]:
    """The eleven deciles of a metric, averaged over the models of an entry; empty if none."""
    found = [r["deciles"] for r in entry.records.get(name, ()) if r["deciles"]]
    return [mean(column) for column in zip(*found, strict=True)]
