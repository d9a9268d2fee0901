"""The order of a table's entries: ranks, groups that are tied, and the best of each column."""

from __future__ import annotations

import math
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


def tied(entries: Sequence[Entry]) -> list[int | None]:
    """The group of each entry whose 95% interval of ERS overlaps with that of the best in it.

    The intervals are over queries and seeds. A paired comparison (``dmlbench compare``) may still
    tell two of a group apart. An entry without an interval, as published ones are, is in no group;
    nor is one that overlaps with no other.
    """
    groups: list[list[int]] = []
    lowest = math.inf  # of the best of the last group
    for number, entry in enumerate(entries):
        interval = entry.interval("ERS") if entry.score is not None else None
        if interval is None:
            continue
        if not groups or interval[1] < lowest:
            groups.append([])
            lowest = interval[0]
        groups[-1].append(number)
    found: list[int | None] = [None] * len(entries)
    for number, places in enumerate((one for one in groups if len(one) > 1), start=1):
        for place in places:
            found[place] = number
    return found


def marks(entries: Sequence[Entry], metric: BoardColumn) -> list[Mark]:
    """``best`` or ``second`` for each that competes: metric N, not collapsed, not flagged.

    Nor does a number that not all seeds of its entry have.
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
