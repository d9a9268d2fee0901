"""The order of a table's entries: ranks, groups that are tied, and the best of each column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from dmlbench.report.columns import BoardColumn
from dmlbench.report.entries import Entry

Mark = Literal["", "best", "second", "failed", "missing"]


def place(entry: Entry) -> tuple[int, float]:
    """Sort key: by ERS, best first; then entries without one; collapsed models last."""
    if entry.standing is not None:
        return 0, -entry.standing
    return (2 if entry.collapsed else 1), 0.0


def ranks(entries: Sequence[Entry]) -> list[str]:
    """The rank of each entry: ``1``, ``2=``, ``2=``, ``4``; empty if it has no score."""
    ranked = [entry.score for entry in entries if entry.score is not None]
    return [
        ""
        if entry.score is None
        else f"{ranked.index(entry.score) + 1}{'=' * (ranked.count(entry.score) > 1)}"
        for entry in entries
    ]


def tied(entries: Sequence[Entry]) -> list[tuple[int, int] | None]:
    """For each entry the numbers of its first and its last group; None if it is in no group.

    It is in all groups between them, too.

    The 95% intervals of ERS, over queries and seeds, of two entries overlap if and only if the
    entries share a group. Groups are as large as they can be, and numbered from the highest
    intervals on. An entry without an interval, as published ones are, is in no group, nor is one
    that overlaps with no other. A paired comparison (``dmlbench compare``) may still tell two of a
    group apart.
    """
    ends = [entry.interval("ERS") if entry.score is not None else None for entry in entries]
    groups: list[set[int]] = []
    above: set[int] = set()
    # those that overlap with each other all have the highest of their lower ends in common
    for point in sorted({low for low, _ in filter(None, ends)}, reverse=True):
        here = {place for place, one in enumerate(ends) if one and one[0] <= point <= one[1]}
        if len(here) > 1 and not here <= above:
            groups.append(here)
        above = here
    found: list[tuple[int, int] | None] = [None] * len(entries)
    for number, group in enumerate(groups, start=1):
        for place in group:
            first, _ = found[place] or (number, number)
            found[place] = first, number
    return found


def marks(entries: Sequence[Entry], metric: BoardColumn) -> list[Mark]:
    """``best`` or ``second`` for each that competes: metric N, not collapsed, not flagged.

    A number that some seeds of its entry lack gets no mark either.
    """
    values = [
        float(number.text)
        if (number := entry.numbers.get(metric.name)) and entry.distance == "N"
        and not entry.collapsed and not entry.flagged and not number.seeds
        else None
        for entry in entries
    ]  # fmt: skip
    order = sorted({v for v in values if v is not None}, reverse=metric.better == "higher")
    if len(order) < 2:
        return [""] * len(values)
    found: dict[float | None, Mark] = {order[1]: "second", order[0]: "best"}
    return [found.get(value, "") for value in values]
