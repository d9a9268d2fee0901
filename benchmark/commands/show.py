"""``dmlbench show``: stored results."""

from __future__ import annotations

import json
from pathlib import Path

import click

from dmlbench.commands.shared import stored
from dmlbench.options import options


@click.command()
@click.argument("dataset", required=False)
@options("results", "json")
def show(dataset: str | None, results: Path, as_json: bool) -> None:
    """Show stored results, of one data set or of all."""
    from dmlbench.report.console import print_table

    cells = stored(results, dataset)
    if as_json:
        click.echo(json.dumps(cells, indent=1))
    else:
        print_table(cells)
