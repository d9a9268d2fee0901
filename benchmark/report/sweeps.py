"""Plots of a sweep: what attacks reach over their radius, or over their steps."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from statistics import mean
from typing import TYPE_CHECKING

from dmlbench.analysis.records import score_columns
from dmlbench.core.naming import parameters, split_heading
from dmlbench.metrics.names import ERS, WORST
from dmlbench.report import style
from dmlbench.report.board import Table
from dmlbench.report.entries import Entry, in_l2
from dmlbench.report.plotted import grid, heading, names_of, protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def against_eps(table: Table) -> Figure | None:
    """Success of attacks against their radius, if a sweep over ``eps`` was measured."""
    title, label = "Attacks against their radius", "radius eps in 1/255"
    return _curves(table, title, "eps", label, lambda text: float(255 * Fraction(text)))


def against_steps(table: Table) -> Figure | None:
    """Success of attacks against their PGD steps, if a sweep over ``steps`` was measured."""
    return _curves(table, "Attacks against their steps", "steps", "PGD steps", float)


def _curves(
    table: Table, title: str, key: str, label: str, read: Callable[[str], float]
) -> Figure | None:
    """Curves of a sweep over ``key``, a panel for each metric that has more than two points."""
    entries = [line.entry for line in table.lines if not line.entry.paper]
    curves: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for entry in entries:
        for name, points in _sweeps(entry, key, read).items():
            if len(points) > 2:
                curves.setdefault(name, {})[id(entry)] = points
    if not curves:
        return None
    swept = [e for e in entries if any(id(e) in found for found in curves.values())]
    down, across = grid(len(curves))
    with style.figure(1.0 + 1.75 * max(across, 2), 0.6 + 2.3 * down) as fig:
        axes = list(fig.subplots(down, across, squeeze=False).flat)
        names, dashes, kinds = names_of(swept, table), style.dashes(swept), style.families(swept)
        for axis in axes[len(curves) :]:
            axis.set_axis_off()
        for axis, name in zip(axes, curves, strict=False):
            for entry in swept:
                if id(entry) in curves[name]:
                    xs, ys = zip(*curves[name][id(entry)], strict=True)
                    looks = style.marker(entry, kinds[id(entry)]) | {"ls": dashes[id(entry)]}
                    axis.plot(xs, ys, label=names[id(entry)], clip_on=False, **looks)
            axis.set_title(heading(name, swept))
            axis.set_xlabel(label)
            axis.set_ylim(bottom=0)
            axis.xaxis.get_major_locator().set_params(integer=True)
        changed = [split_heading(name)[1] for entry in swept for name in entry.records]
        both = any({key, "alpha"} <= keys.keys() for keys in changed)
        words = f"{key} and alpha vary" if both else f"{key} varies"
        style.say(fig, title, f"{protocol(table, swept)}; here {words}", axes)
    return fig


def _sweeps(
    entry: Entry, key: str, read: Callable[[str], float]
) -> dict[str, list[tuple[float, float]]]:
    """Metric -> points (x, value) of a sweep over ``key``.

    They include the value under the protocol and, at x = 0, the clean value, and none that a seed
    of the entry lacks: it is a mean over other models than its neighbours.
    """
    found: dict[str, dict[float, float]] = {}
    for column, records in entry.records.items():
        if key == "eps" and in_l2(records[0]):  # no number of 1/255, as the axis has them
            continue
        name, changed = split_heading(column)
        here = parameters(records[0]["attack_resolved"])
        usual = parameters(entry.records.get(name, records)[0]["attack_resolved"])
        if name in (ERS, WORST):  # drawn from attacks, so they have none of their own
            usual = _of_sources(entry, name)
            here = usual | changed
        # what nobody changed must be as usual: a single step has another alpha (FGSM)
        same = all(here[k] == usual.get(k) for k in here if k != key and k not in changed)
        text = here.get(key)
        partial = bool(entry.numbers[column].seeds)
        if text is None or partial or not same or not changed.keys() <= {key, "alpha"}:
            continue
        points = found.setdefault(name, {})
        points[read(text)] = entry.numbers[column].value
        clean = [r["clean"] for r in records if r["clean"] not in (None, "")]
        if clean:
            points[0.0] = mean(clean)
    return {name: sorted(points.items()) for name, points in found.items()}


def _of_sources(entry: Entry, score: str) -> dict[str, str]:
    """The keys of the attacks that a score is drawn from, under the protocol."""
    columns = [c for c in score_columns(score, entry.suite) if c in entry.records]
    return parameters(entry.records[columns[0]][0]["attack_resolved"]) if columns else {}
