"""Tables and listings for a terminal, or a pipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dmlbench.report.board import BoardCell
    from dmlbench.storage.store import Cell

STYLES = {"best": "bold", "second": "underline", "failed": "red"}


def print_table(cells: list[Cell]) -> None:
    """A table for each group of rows that can be compared, and the errors of failed cells."""
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
        if needed > console.width:  # one column a model is narrower than one column a metric
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


def print_listing(described: dict[str, list[dict[str, Any]]], help: Mapping[str, str]) -> None:
    """Every kind's entries with their parameters, those they share once at the end.

    ``help`` says what the number in a column means, by the column's heading.
    """
    for name, entries in described.items():
        click.secho(name, bold=True)
        shared = _shared_parameters(entries)
        for entry in entries:
            _print_entry(entry, shared, help)
        if shared:
            click.echo(f"  {click.style('all of them', fg='cyan')}")
            for p in shared:
                _print_parameter(p)
        click.echo()


def _shared_parameters(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameters that every one of several entries has, to be shown once."""
    if len(entries) < 2:
        return []
    return [p for p in entries[0]["parameters"] if all(p in e["parameters"] for e in entries)]


def _print_entry(
    entry: dict[str, Any], shared: list[dict[str, Any]], help: Mapping[str, str]
) -> None:
    columns = ", ".join(
        f"{c['name']}{' in ' + c['unit'] if c['unit'] else ''} ({c['better']} is better)"
        for c in entry.get("columns", [])
    )
    click.echo(f"  {click.style(entry['name'], fg='cyan')}  {entry['summary']}")
    if columns:
        click.echo(f"      reports {columns}")
        for column in entry["columns"]:
            if text := help[column["name"]]:
                click.echo(f"        {column['name']}: {text}")
    if entry["paper"]:
        click.echo(f"      {entry['paper']['short']}  {entry['paper']['url']}")
    if "recipe" in entry:
        recipe = ", ".join(
            f"{key} {value:g}" if isinstance(value, int | float) else f"{key} {value}"
            for key, value in entry["recipe"].items()
        )
        threat = entry["threat"]
        click.echo(f"      trains {entry['model']}: {recipe}")
        click.echo(
            f"      attacked with eps {threat['eps'] * 255:g}/255, {threat['steps']} steps of "
            f"{threat['alpha'] * 255:g}/255, suite {threat['suite']}"
        )
    for p in entry["parameters"]:
        if p not in shared:
            _print_parameter(p)


def _print_parameter(p: dict[str, Any]) -> None:
    click.echo(f"      {p['name']}={p['default']}  {p['help']} ({p['domain']})")
