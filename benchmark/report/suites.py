"""Plots across the tables of a board: one number of the same models under several suites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dmlbench.core.protocol import SUITES
from dmlbench.metrics.names import ERS
from dmlbench.report import style
from dmlbench.report.board import Table
from dmlbench.report.entries import Entry
from dmlbench.report.plotted import error_bar, left_out, marks, names_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS: dict[str, dict[str, Any]] = {
    "strict": {"marker": "s", "color": style.ACT.color},
    "ers": {"marker": "^", "color": style.EST.color},
    "auto": {"marker": "o", "color": style.INK},
}
MOST = 32  # models in one plot
APART = 0.22  # of the height of a row, between the marks of two suites
Scored = dict[tuple[object, ...], Entry]


def ers_by_suite(tables: Sequence[Table]) -> Figure | None:
    """ERS of each model (row) under each suite, in the order under the last suite of ``SUITES``.

    It shows the models that were measured here under two suites or more, flagged ones too, and none
    that has collapsed. Bars are 95% intervals over queries and seeds.
    """
    by_suite = {t.suite: t for suite in SUITES for t in tables if t.suite == suite}
    found = {suite: _scored(table) for suite, table in by_suite.items()}
    models: Scored = {}
    for scored in reversed(found.values()):
        models |= {key: entry for key, entry in scored.items() if key not in models}
    every = [key for key in models if sum(key in scored for scored in found.values()) > 1]
    rows = every[:MOST]
    if not rows:
        return None
    entries = [models[key] for key in rows]
    table = list(by_suite.values())[-1]
    with style.figure(6.4, 1.2 + 0.27 * len(rows)) as fig:
        axis = fig.add_subplot()
        for place, (suite, scored) in enumerate(found.items()):
            axis.plot([], [], ls="", label=suite, **LOOKS[suite])
            aside = APART * (place - (len(found) - 1) / 2)
            for row, key in enumerate(rows):
                if key in scored:
                    looks = LOOKS[suite] | {"ls": ""}
                    error_bar(axis, scored[key], ERS, row + aside, **looks)
        names = names_of(entries, table)
        axis.set_yticks(range(len(rows)), [names[id(e)] for e in entries])
        axis.set_ylim(len(rows) - 0.5, -0.5)  # the best on top
        axis.set_xlim(left=0)
        axis.set_xlabel("ERS, from 0 (broken) to 100 (higher is better)")
        words = [table.dataset, *left_out(rows, every, "models"), *marks(entries)]
        words.append("bars: 95% over queries and seeds")
        style.say(fig, "ERS by suite", "; ".join(words), [axis])
    return fig


def _scored(table: Table) -> Scored:
    """The models with an ERS that were measured here and have not collapsed, best first."""
    entries = [line.entry for line in table.lines]
    found = [e for e in entries if ERS in e.numbers and not (e.paper or e.collapsed)]
    found.sort(key=lambda e: -e.numbers[ERS].value)
    return {(e.label, e.resolved, *sorted(e.details.items())): e for e in found}
