"""The parts that several plots share: the choice of entries, their names, and the caption."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING, Any

from dmlbench.core.naming import parameters, told_apart
from dmlbench.report.board import Table
from dmlbench.report.columns import BoardColumn
from dmlbench.report.entries import Entry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = 6  # at most, side by side


def ranked(table: Table) -> list[Entry]:
    """The entries that have a rank, best first."""
    return [line.entry for line in table.lines if line.entry.score is not None]


def flagged(table: Table) -> list[Entry]:
    """The entries that have an ERS and no rank because they are flagged."""
    entries = [line.entry for line in table.lines]
    return [e for e in entries if e.flagged and not e.collapsed and "ERS" in e.numbers]


def series(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The entries in groups that differ in eta alone, in their order."""
    groups: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        key = (entry.label, entry.paper, *sorted(_but_eta(entry).items()))
        groups.setdefault(key, []).append(entry)
    return list(groups.values())


def _but_eta(entry: Entry) -> dict[str, str]:
    """The details of an entry without eta."""
    return {key: value for key, value in entry.details.items() if key != "eta"}


def passes(entry: Entry) -> int:
    """Forward-backward passes of a training step: eta + 1."""
    return (entry.eta or 0) + 1


def names_of(entries: Sequence[Entry], table: Table) -> dict[int, str]:
    """Identity of each entry -> ``HM[S,g_LGA]&ICS, η=8``, with network and recipe where those that
    plots draw have several, and with what else tells the entries apart.

    A model that was not trained here has a name of its own, which stands alone. The table may lack
    some of the entries, in a plot of several tables.
    """
    every = [*entries, *(line.entry for line in table.lines)]
    several = len({e.model for e in every if e.score is not None or not e.paper}) > 1
    recipes = {entry.recipe for entry in every if not entry.paper}
    names = []
    for entry in entries:
        parts = [entry.label]
        parts += [f"η={entry.eta}"] * (entry.eta is not None)
        parts += [entry.model] * (several and bool(entry.resolved or entry.paper))
        parts += [entry.recipe] * (len(recipes) > 1 and bool(entry.recipe))
        marks = " †" * entry.collapsed + " ‡" * entry.flagged
        names.append(", ".join(parts) + marks)
    shown = {"eta", *(key for e in entries for key in parameters(f":{e.recipe}"))}
    told = apart(names, entries, shown)
    return {id(entry): name for entry, name in zip(entries, told, strict=True)}


def apart(names: Sequence[str], entries: Sequence[Entry], shown: set[str]) -> list[str]:
    """The names, told apart by the details of the entries but for the keys in ``shown``.

    A published entry and one that was measured here may share a name: markers tell them apart.
    """
    found = dict(enumerate(names))
    for published in (True, False):
        places = [place for place, e in enumerate(entries) if (e.paper is not None) == published]
        details = [
            {k: v for k, v in entries[place].details.items() if k not in shown} for place in places
        ]
        found |= zip(places, told_apart([names[p] for p in places], details), strict=True)
    return list(found.values())


def error_bar(axis: Axes, entry: Entry, name: str, y: float, **looks: Any) -> None:
    """Draw a number of an entry with its interval, at the height ``y``."""
    value = entry.numbers[name].value
    low, high = entry.interval(name) or (value, value)
    around = [[max(0, value - low)], [max(0, high - value)]]
    axis.errorbar(value, y, xerr=around, capsize=2, markersize=4, **looks)


def heading(name: str, entries: Sequence[Entry]) -> str:
    """The heading of a metric with its arrow."""
    better = next(e.better[name] for e in entries if name in e.better)
    return BoardColumn(name, better, "").label


def protocol(table: Table, entries: Sequence[Entry], threats: Sequence[str] = ()) -> str:
    """The caption: data set, suite, adversary, number of queries and training recipe.

    ``threats``: the adversary in words, where it is not the one of most of the table's columns.
    """
    usual = [f"{by} L∞ {words}" for by, words in table.threats]
    return "; ".join([table.title, *(threats or usual), *marks(entries)])


def marks(entries: Sequence[Entry]) -> list[str]:
    """The part of a caption that is about the models: queries, recipes, and what marks mean."""
    queries = sorted({entry.n for entry in entries if entry.n})
    parts = [f"n = {' or '.join(f'{n:,}' for n in queries)} queries"] * bool(queries)
    parts += [f"recipe {one}" for one in sorted({e.recipe for e in entries if e.recipe})]
    if any(entry.paper for entry in entries):
        parts.append("hollow: published, on the whole test split")
    if any(entry.collapsed for entry in entries):
        parts.append("† collapsed")
    if any(entry.flagged for entry in entries):
        parts.append("‡ flagged")
    return parts


def left_out(shown: Sized, every: Sized, what: str) -> list[str]:
    """For a caption: ``the first 24 of 71 models``; empty if all are shown."""
    return [f"the first {len(shown)} of {len(every)} {what}"] * (len(shown) < len(every))


def grid(count: int) -> tuple[int, int]:
    """Rows and columns for ``count`` panels, at most ``PANELS`` side by side."""
    down = -(-count // PANELS)
    return down, -(-count // down)
