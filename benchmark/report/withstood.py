"""The plot of R@1 against what a query withstands: forward passes of a black box, or eps."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING

from dmlbench.metrics.bootstrap import wilson
from dmlbench.report import style
from dmlbench.report.board import Table
from dmlbench.report.captions import entry_name, protocol
from dmlbench.report.columns import curves
from dmlbench.report.entries import Entry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = 4  # at most, side by side


def withstood(table: Table) -> Figure | None:
    """R@1 of each model as a function of the passes spent (or of eps), with its 95% band."""
    entries = [line.entry for line in table.lines if not line.entry.paper]
    known = curves()
    headings = dict.fromkeys(
        name for e in entries for name in e.records if name.partition(" (")[0] in known
    )
    panels = [h for h in headings if any(survivors(e, h) for e in entries)][:PANELS]
    if not panels:
        return None
    drawn = [e for e in entries if any(survivors(e, h) for h in panels)]
    with style.figure(1.2 + 2.6 * len(panels), 3.4) as fig:
        axes = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, heading in zip(axes, panels, strict=True):
            for place, entry in enumerate(drawn):
                points = survivors(entry, heading)
                if not points:
                    continue
                xs, shares = zip(*points, strict=True)
                color, dash = style.family(entry).color, style.DASHES[place % 4]
                low, high = wilson(shares, int(entry.numbers[heading].n or 1))
                axis.fill_between(
                    xs, 100 * low, 100 * high, step="post", color=color, alpha=0.15, lw=0
                )
                axis.step(
                    *(xs, [100 * share for share in shares]),
                    where="post",
                    color=color,
                    ls=dash,
                    label=entry_name(entry, table),
                )
            name, _, variant = heading.partition(" (")
            axis.set_title(f"{known[name].title} ({variant}" if variant else known[name].title)
            axis.set_xscale("symlog", linthresh=1)  # 0 is a place on it
            axis.set(xlabel=known[name].over, ylim=(0, 100))
            end = max(survivors(e, heading)[-1][0] for e in drawn if survivors(e, heading))
            ticks = [0, *(10**power for power in range(6) if 10**power <= end)]
            axis.set_xlim(0, end)
            axis.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
            axis.minorticks_off()
        axes[0].set_ylabel("R@1 in %")
        words = f"{protocol(table, drawn)}; bands: 95% Wilson intervals over queries"
        style.say(fig, "R@1 against what the attacker spends", words, axes)
    return fig


def survivors(entry: Entry, heading: str) -> list[tuple[float, float]]:
    """Points (x, share of queries whose value is above x), from the percentiles of a column.

    The last one stands for the queries that withstood everything: their value is the largest.
    """
    found = [r["deciles"] for r in entry.records.get(heading, ()) if len(r["deciles"]) == 101]
    if not found:
        return []
    values = [mean(column) for column in zip(*found, strict=True)]
    return step_curve(values)


def step_curve(percentiles: Sequence[float]) -> list[tuple[float, float]]:
    """The same for one list of 101 percentiles, ascending."""
    end = percentiles[-1]
    points = {0.0: 1.0}
    for percent, value in enumerate(percentiles):
        if value < end:
            points[value] = 1 - percent / 100
    held = sum(value == end for value in percentiles) - 1
    return [*((x, y) for x, y in points.items() if x < end), (end, held / 100)]
