"""Curves over queries: R@1 as a function of eps, for all models of a table in one plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dmlbench.analysis.records import Record
from dmlbench.core.naming import parameters, split_heading
from dmlbench.report import style
from dmlbench.report.board import Table
from dmlbench.report.columns import curves
from dmlbench.report.entries import Entry
from dmlbench.report.plotted import left_out, names_of, protocol

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 4  # at most, side by side
LINES = 8  # that can be told apart
SPARE = 1.5  # the axis ends at so many times the x at which no model has anything left
NARROW, WIDE = 16, 256  # the axis is linear where the largest x lies between them
THREAT = {"eps": "eps {}", "steps": "{} steps", "budget": "at most {} passes"}
Points = Sequence[tuple[float, float]]


def top1_curves(table: Table) -> Figure | None:
    """R@1 against eps (the share of queries of a larger radius), and curves of the same kind.

    A panel for each column with a curve; columns of one attack over the same x share a panel. The
    band is the 95% interval at each x, over queries; of several seeds, their mean is drawn and the
    band goes from the lowest to the highest. Of more models than ``LINES`` the best of each family
    is drawn.
    """
    entries = [line.entry for line in table.lines if not line.entry.paper]
    curved = [e for e in entries if any(r["curve"] for made in e.records.values() for r in made)]
    bands = "bands: 95% over queries, or range over seeds"
    if len(curved) > LINES:
        entries = style.best_of_families([e for e in curved if not e.flagged])
        bands = f"the best of each family by ERS; {bands}"
    possible = _panels(entries)
    panels = possible[:MOST_PANELS]
    if not panels:
        return None
    drawn = [e for e in entries if any(e in found for one in panels for found in one.values())]
    names, kinds = names_of(drawn, table), style.families(drawn)
    with style.figure(1.0 + 4.2 * len(panels), 3.8) as fig:
        axes = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            for place, (name, found) in enumerate(panel.items()):
                (bare, _), dashes = split_heading(name), style.dashes(drawn, place)
                for entry in found:
                    label = names[id(entry)] if len(panel) == 1 else f"{names[id(entry)]}: {bare}"
                    looks = {"color": kinds[id(entry)].color, "ls": dashes[id(entry)]}
                    _draw(axis, entry.records[name], label, looks)
            title, over = _meaning(name)
            axis.set(title=title, xlabel=over, ylim=(0, 100))
            every = [r for name, found in panel.items() for e in found for r in e.records[name]]
            points = [point for record in every for point in record["curve"]]
            last = SPARE * max(map(_nothing_left, every))
            _scale(axis, points, min(last, max(map(_most, every))))
        axes[0].set_ylabel("R@1 in % (higher is better)")
        threats = dict.fromkeys(
            _threat(e, name) for panel in panels for name in panel for e in panel[name]
        )
        cut = left_out(panels, possible, "panels")
        words = "; ".join([protocol(table, drawn, list(threats)), *cut, bands])
        style.say(fig, "Right top-1 against the strength of the attack", words, axes)
    return fig


def _threat(entry: Entry, name: str) -> str:
    """The attack of a column in words: ``radius eps 77/255, 50 steps``."""
    given = entry.records[name][0]["attack_resolved"]
    known = parameters(given)
    words = [form.format(known[key]) for key, form in THREAT.items() if key in known]
    return " ".join(filter(None, (given.partition(":")[0], ", ".join(words))))


def _meaning(heading: str) -> tuple[str, str]:
    """The title of the panel that a column with a curve is in, and what the curve is over."""
    metric, _ = split_heading(heading)
    one = curves()[metric]
    return one.title + heading.removeprefix(metric), one.over


def _panels(entries: Sequence[Entry]) -> list[dict[str, list[Entry]]]:
    """The panels from left to right: heading of each column in it -> the models that have it."""
    known = curves()
    headings = dict.fromkeys(
        name for e in entries for name in e.records if split_heading(name)[0] in known
    )
    panels: dict[tuple[str, str], dict[str, list[Entry]]] = {}
    for name in headings:
        found = [e for e in entries if any(r["curve"] for r in e.records.get(name, ()))]
        if found:
            panels.setdefault(_meaning(name), {})[name] = found
    return list(panels.values())


def _draw(axis: Axes, records: Sequence[Record], label: str, looks: Mapping[str, Any]) -> None:
    """A step function with its band, up to the largest x that was tried."""
    records = [record for record in records if record["curve"]]
    end = min(map(_most, records))
    xs = np.unique([end, *(x for record in records for x, _ in record["curve"] if x < end)])
    shares = np.array([_at(record["curve"], xs) for record in records])
    if len(xs) > 1:  # a value at the end stands for a query that nothing broke
        shares[:, -1] = shares[:, -2]
    if len(records) == 1:
        low, high = _interval(shares[0], records[0]["n"])
    else:
        low, high = shares.min(axis=0), shares.max(axis=0)
    axis.plot(xs, shares.mean(axis=0), drawstyle="steps-post", label=label, **looks)
    axis.fill_between(xs, low, high, step="post", color=looks["color"], alpha=0.15, lw=0)


def _most(record: Record) -> float:
    """The largest x that was tried: the radius in 1/255 or as a length, or the budget."""
    given = parameters(record["attack_resolved"])
    if "budget" in given:
        return float(given["budget"])
    grey = curves()[record["metric"]].over.endswith("1/255")
    return (255 if grey else 1) * float(Fraction(given["eps"]))


def _nothing_left(record: Record) -> float:
    """The x from which on no query is right any more, or the largest that was tried."""
    return next((x for x, share in record["curve"] if share == 0), _most(record))


def _at(curve: Points, xs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The shares of a step function at ``xs``."""
    places, shares = np.array(curve).T
    found: npt.NDArray[np.float64] = shares[np.searchsorted(places, xs, side="right") - 1]
    return found


def _interval(
    shares: npt.NDArray[np.float64], n: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The 95% interval (Wilson's) of each share, in percent, of ``n`` queries."""
    from scipy.stats import binomtest

    counts = np.rint(shares * n / 100).astype(int)
    found = [binomtest(int(k), n).proportion_ci(method="wilson") for k in counts]
    return 100 * np.array([one.low for one in found]), 100 * np.array([one.high for one in found])


def _scale(axis: Axes, points: Points, end: float) -> None:
    """From zero to ``end``; logarithmic where what matters is near zero, or x is large."""
    positive = [x for x, _ in points if x > 0]
    if positive and not NARROW < end < WIDE:
        axis.set_xscale("symlog", base=2, linthresh=min(positive))  # 0 is a place on it
        least, most = math.ceil(math.log2(min(positive))), math.floor(math.log2(end))
        step = 1 + max(0, most - least) // 6
        ticks = [0, *(2.0**power for power in range(least, most + 1, step))]
        axis.set_xticks(
            ticks, [f"{tick:g}" if tick >= 1 else str(Fraction(tick)) for tick in ticks]
        )
        axis.minorticks_off()
    axis.set_xlim(0, end or 1)
