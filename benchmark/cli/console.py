"""Tables of text, for a terminal or a pipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from dmlbench.report.board import BoardCell
    from dmlbench.storage.store import Cell

STYLES = {"best": "bold", "second": "underline", "failed": "red"}


def print_table(cells: list[Cell]) -> None:
    """Print a table for each data set and suite, and the errors of failed cells."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    from dmlbench.analysis.records import tidy
    from dmlbench.report.board import HIDDEN, tables
    from dmlbench.report.columns import in_order
    from dmlbench.report.entries import measured

    console = Console()
    if not console.is_terminal:
        console.width = 10_000  # a pipe has no edge to wrap at
    entries = measured(tidy(cells))
    names = in_order({name for entry in entries for name in (*entry.numbers, *entry.better)})
    for table in tables(entries, [name for name in names if name not in HIDDEN]):
        lines = [[Text(column.label) for column in table.columns]]
        lines += [
            [Text(_shown(cell), STYLES.get(cell.mark, "")) for cell in line.cells]
            for line in table.lines
        ]
        needed = sum(3 + max(map(len, column)) for column in zip(*lines, strict=True))
        if (
            needed > console.width
        ):  # a column for each model is narrower than a column for each metric
            lines = [list(line) for line in zip(*lines, strict=True)]
        grid = Grid(box=box.SIMPLE_HEAD)
        for number, heading in enumerate(lines[0]):
            grid.add_column(heading, justify="right" if number else "left")
        for line in lines[1:]:
            grid.add_row(*line)
        click.secho(table.title, bold=True)
        console.print(grid)
    for entry in entries:
        for what, error in entry.failed.items():
            click.echo(f"failed: {what} on {entry.label}: {error}")


def _shown(cell: BoardCell) -> str:
    return f"{cell.text} {cell.number.range}".rstrip() if cell.number else cell.text


def aligned(table: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table; each column is as wide as its widest text."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
