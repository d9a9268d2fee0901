"""Names and captions of plots."""

from __future__ import annotations

from collections.abc import Sequence

from dmlbench.report.board import Table
from dmlbench.report.columns import BoardColumn
from dmlbench.report.entries import Entry


def entry_name(entry: Entry, table: Table) -> str:
    """``HM[S,g_LGA]&ICS, η=8``, with network and recipe if the table has several."""
    parts = [entry.label]
    parts += [f"η={entry.eta}"] * (entry.eta is not None)
    parts += [entry.model] * (len({line.entry.model for line in table.lines}) > 1)
    recipes = {line.entry.recipe for line in table.lines if not line.entry.paper}
    parts += [entry.recipe] * (len(recipes) > 1 and bool(entry.recipe))
    return ", ".join(parts)


def labelled(name: str, entries: Sequence[Entry]) -> str:
    """The heading of a metric with its arrow."""
    better = next(e.better[name] for e in entries if name in e.better)
    return BoardColumn(name, better, "").label


def protocol(table: Table, entries: Sequence[Entry]) -> str:
    """The caption: data set, suite, adversary, number of queries and training recipe."""
    parts = [table.title, *(f"{table.optimizer} L∞ {threat}" for threat in table.threats)]
    queries = sorted({entry.n for entry in entries if entry.n})
    parts += [f"n = {' or '.join(f'{n:,}' for n in queries)} queries"] * bool(queries)
    parts += [f"recipe {one}" for one in sorted({e.recipe for e in entries if e.recipe})]
    if any(entry.paper for entry in entries):
        parts.append("hollow: published, on the whole test split")
    return "; ".join(parts)
