"""Tables for a terminal, a pipe or a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from dmlbench.analysis.records import Record
from dmlbench.core.naming import told_apart
from dmlbench.metrics.names import WORST
from dmlbench.report.board import HIDDEN, BoardCell, Table, tables
from dmlbench.report.columns import in_order
from dmlbench.report.entries import Entry, measured

STYLES = {"best": "bold", "second": "underline", "failed": "red"}
LEAST = 23  # columns of a model, on its side: here, n = 1,000, seed 0
NO_EDGE = 10_000  # columns: a pipe has no edge to wrap at


def print_tables(records: Iterable[Record], console: Console | None = None) -> None:
    """A table for each group of rows that can be compared, and the errors of failed cells.

    Args:
        records: tidy records.
        console: where to print; by default standard output, never wrapped where that is a pipe.
    """
    print_entries(measured(records), console)


def print_entries(entries: Sequence[Entry], console: Console | None = None) -> None:
    """Print tables and errors of entries, as ``print_tables`` does of records."""
    console = console or _standard_output()
    for table in _tables(entries):
        console.print(Text(table.title, "bold"))
        heads = [Text(column.label) for column in table.columns]
        lines = [
            [Text(_shown(cell), STYLES.get(cell.mark, "")) for cell in line.cells]
            for line in table.lines
        ]
        numbers = (_shown(cell) for line in table.lines for cell in line.cells if cell.number)
        for grid in _grids(heads, lines, numbers, console.width):
            console.print(grid)
    names = told_apart([entry.label for entry in entries], [entry.details for entry in entries])
    for entry, name in zip(entries, names, strict=True):
        worst = entry.numbers.get(WORST)
        if worst is not None and worst.note:
            console.print(worst.note, markup=False, highlight=False)
        words = [f"flagged, not ranked: {name}: {s}" for s in entry.reasons(note=False)]
        words += [f"note: {name}: {s}" for s in entry.reasons(note=True)]
        for line in words:
            console.print(line, markup=False, highlight=False)
        lost: dict[str, list[str]] = {}  # error -> headings: one failure may cost many numbers
        for heading, record in entry.failed.items():
            lost.setdefault(record["error"], []).append(heading)
        for error, headings in lost.items():
            text = f"failed: {', '.join(headings)} on {name}: {error}"
            console.print(text, markup=False, highlight=False)


def print_grid(
    heads: Sequence[str],
    lines: Iterable[Sequence[str]],
    names: Sequence[str],
    console: Console | None = None,
) -> None:
    """Print a table of texts that is no board; where it is too wide, it is turned on its side.

    Args:
        heads: the headings.
        lines: the texts below them.
        names: headings of the columns whose texts may be folded; numbers never are.
        console: where to print; by default standard output, never wrapped where that is a pipe.
    """
    console = console or _standard_output()
    texts = [[Text(one) for one in line] for line in lines]
    numbers = [
        one.plain
        for line in texts
        for head, one in zip(heads, line, strict=True)
        if head not in names
    ]
    for grid in _grids([Text(head) for head in heads], texts, numbers, console.width, names):
        console.print(grid)


def _standard_output() -> Console:
    console = Console()
    if not console.is_terminal:
        console.width = NO_EDGE
    return console


def all_tables(records: Iterable[Record]) -> tuple[Table, ...]:
    """The board tables of ``records`` with every column that was measured."""
    return _tables(measured(records))


def _tables(entries: Sequence[Entry]) -> tuple[Table, ...]:
    names = in_order({name for entry in entries for name in (*entry.numbers, *entry.better)})
    return tables(entries, [name for name in names if name not in HIDDEN])


def _grids(
    heads: Sequence[Text],
    lines: Sequence[Sequence[Text]],
    numbers: Iterable[str],
    width: int,
    names: Sequence[str] = (),
) -> Iterator[Grid]:
    """The table; where it is wider than ``width``, turned on its side: one column a line.

    Where that is too wide as well, as many lines at a time as fit beside each other. Texts are then
    folded, and ``numbers`` never are. Columns under one of ``names`` begin at the left.
    """
    if _needed([heads, *lines]) <= width:
        yield _grid([heads, *lines], names=names)
        return
    turned = [list(row) for row in zip(heads, *lines, strict=True)]
    if _needed(turned) <= width:
        yield _grid(turned)
        return
    each = max([LEAST, *map(len, numbers)])
    at_once = max(1, (width - 3 - max(map(len, heads))) // (each + 3))
    for start in range(0, len(lines), at_once):
        yield _grid([[row[0], *row[1:][start : start + at_once]] for row in turned], each)


def _needed(lines: Sequence[Sequence[Text]]) -> int:
    """The width of a table, with a gap of three between columns."""
    return sum(3 + max(map(len, column)) for column in zip(*lines, strict=True))


def _grid(
    lines: Sequence[Sequence[Text]], each: int | None = None, names: Sequence[str] = ()
) -> Grid:
    """Lay lines out, the first as headings; ``each``: width of all columns but the first."""
    grid = Grid(box=box.SIMPLE_HEAD)
    for number, heading in enumerate(lines[0]):
        if number:
            justify: Literal["left", "right"] = "left" if heading.plain in names else "right"
            grid.add_column(heading, justify=justify, overflow="fold", width=each)
        else:
            grid.add_column(heading, no_wrap=True)
    for line in lines[1:]:
        grid.add_row(*line)
    return grid


def _shown(cell: BoardCell) -> str:
    return f"{cell.text} {cell.number.range}".rstrip() if cell.number else cell.text
