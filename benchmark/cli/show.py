"""``dmlbench show``: print stored results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dmlbench.cli.options import options
from dmlbench.cli.shared import stored
from dmlbench.common.errors import UserError

if TYPE_CHECKING:
    from dmlbench.analysis.pivot import Place
    from dmlbench.analysis.records import Record
    from dmlbench.analysis.where import Condition


@click.command(
    epilog="\b\nExamples:\n"
    "  dmlbench show fashion --where suite=strict --where 'defense=hm*'\n"
    "  dmlbench show --where suite=strict --pivot label:metric   # mean ± deviation over seeds\n"
    "  dmlbench show --where metric=CA+ --pivot label,model:attack,seed\n\n"
    "The columns are those of results.csv.",
)
@click.argument("dataset", required=False)
@click.option(
    "--where",
    "conditions",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Show only results whose COLUMN is VALUE, in any letter case; * stands for any text, | "
    "for or. May be repeated.",
)
@click.option(
    "--pivot",
    "layout",
    metavar="ROWS:COLUMNS",
    help="Lay the values out by columns of results.csv, averaged over the seeds unless seed is one "
    "of them.",
)
@options("results", "json")
def show(
    dataset: str | None,
    conditions: tuple[str, ...],
    layout: str | None,
    results: Path,
    as_json: bool,
) -> None:
    """Show stored results of one DATASET, or of all.

    They are those of the cells in the results folder, and of the CSVs beside them. --json prints
    the cells; where there are only CSVs, it prints their rows.
    """
    from dmlbench.analysis.pivot import OF_MODELS, chosen, meeting, meets
    from dmlbench.analysis.records import TIDY_COLUMNS
    from dmlbench.analysis.where import condition
    from dmlbench.report.entries import measured
    from dmlbench.report.terminal import print_entries

    cells, every = stored(results, dataset)
    wanted = [condition(text, TIDY_COLUMNS) for text in conditions]
    nothing = UserError(f"no results in {results} where {' and '.join(conditions)}")
    if as_json and layout is None:
        cells = chosen(cells, wanted)
        found = [cell.as_json() for cell in cells] if cells else meeting(every, wanted)
        if not found:
            raise nothing
        click.echo(json.dumps(found, indent=1))
    elif layout is not None:
        if not meeting(every, wanted):
            raise nothing
        _print_pivot(every, wanted, layout, as_json)
    else:
        mine = meeting(every, [one for one in wanted if one.key in OF_MODELS])
        rest = [one for one in wanted if one.key not in OF_MODELS]
        entries = measured(mine, lambda record: meets(record, rest))
        if not entries:
            raise nothing
        print_entries(entries)


def _print_pivot(
    records: list[Record], conditions: list[Condition], layout: str, as_json: bool
) -> None:
    from dmlbench.analysis.pivot import column, pivot
    from dmlbench.cli.console import aligned

    sides = [side.split(",") for side in layout.split(":")]
    if len(sides) != 2:
        raise UserError(f"--pivot {layout!r} is not ROWS:COLUMNS, e.g. --pivot label:metric")
    rows, columns = ([column(name) for name in side] for side in sides)
    table = pivot(records, rows, columns, conditions)
    if as_json:
        lines_of = [
            dict(zip(rows, row, strict=True))
            | dict(zip(columns, place, strict=True))
            | found.value.as_json()
            | {"collapsed": found.collapsed}
            for row, line in table.items()
            for place, found in line.items()
        ]
        click.echo(json.dumps(lines_of, indent=1))
        return
    places = list(dict.fromkeys(place for line in table.values() for place in line))
    lines = [[*rows, *map(" ".join, places)]]
    for row, line in table.items():
        lines.append([*row, *(_shown(line.get(place)) for place in places)])
    click.echo("\n".join(aligned(lines)))
    if any(found.collapsed for line in table.values() for found in line.values()):
        click.echo("† collapsed: the model retrieves nothing any more.")


def _shown(place: Place | None) -> str:
    if place is None:
        return ""
    value = place.value
    around = "" if value.sd is None else f" ± {value.sd:.2g}"
    return f"{value.mean:.4g}{around}{' †' * place.collapsed}"
