"""``dmlbench leaderboard``: boards from stored results."""

from __future__ import annotations

from pathlib import Path

import click

from dmlbench.commands.shared import render_board, stored
from dmlbench.options import options


@click.command()
@options("results", "leaderboards")
def leaderboard(results: Path, leaderboards: Path) -> None:
    """Render the board of every data set with stored results."""
    from dmlbench.store import Store

    names = {cell["about"]["dataset"].partition(":")[0] for cell in stored(results, None)}
    for name in sorted(names):
        click.echo(render_board(Store(results), name, leaderboards))
