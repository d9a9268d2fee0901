"""Tables for a terminal, a pipe or a notebook."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from dmlbench.analysis.records import Record
from dmlbench.core.naming import told_apart
from dmlbench.metrics.names import WORST
from dmlbench.report.board import HIDDEN, BoardCell, Table, tables
from dmlbench.report.columns import in_order
from dmlbench.report.entries import measured

STYLES = {"best": "bold", "second": "underline", "failed": "red"}
NO_EDGE = 10_000  # columns: a pipe has no edge to wrap at


def print_tables(records: Iterable[Record], console: Console | None = None) -> None:
    """A table for each group of rows that can be compared, and the errors of failed cells.

    Args:
        records: tidy records.
        console: where to print; by default standard output, never wrapped where that is a pipe.
    """
    if console is None:
        console = Console()
        if not console.is_terminal:
            console.width = NO_EDGE
    entries = measured(records)
    for table in all_tables(records):
        console.print(Text(table.title, "bold"))
        console.print(_grid(table, console.width))
    names = told_apart([entry.label for entry in entries], [entry.details for entry in entries])
    for entry, name in zip(entries, names, strict=True):
        worst = entry.numbers.get(WORST)
        if worst is not None and worst.note:
            console.print(worst.note, markup=False, highlight=False)
        words = [f"flagged, not ranked: {name}: {s}" for s in entry.reasons(note=False)]
        words += [f"note: {name}: {s}" for s in entry.reasons(note=True)]
        for line in words:
            console.print(line, markup=False, highlight=False)
        for what, error in entry.failed.items():
            console.print(f"failed: {what} on {name}: {error}", markup=False, highlight=False)


def all_tables(records: Iterable[Record]) -> tuple[Table, ...]:
    """The board tables of ``records`` with every column that was measured."""
    entries = measured(records)
    names = in_order({name for entry in entries for name in (*entry.numbers, *entry.better)})
    return tables(entries, [name for name in names if name not in HIDDEN])


def _grid(table: Table, width: int) -> Grid:
    """The table, turned on its side where it is wider than ``width``: one column a model."""
    lines = [[Text(column.label) for column in table.columns]]
    lines += [
        [Text(_shown(cell), STYLES.get(cell.mark, "")) for cell in line.cells]
        for line in table.lines
    ]
    needed = sum(3 + max(map(len, column)) for column in zip(*lines, strict=True))
    if needed > width:
        lines = [list(line) for line in zip(*lines, strict=True)]
    grid = Grid(box=box.SIMPLE_HEAD)
    for number, heading in enumerate(lines[0]):
        grid.add_column(heading, justify="right" if number else "left")
    for line in lines[1:]:
        grid.add_row(*line)
    return grid


def _shown(cell: BoardCell) -> str:
    return f"{cell.text} {cell.number.range}".rstrip() if cell.number else cell.text
