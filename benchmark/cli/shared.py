"""Steps that several verbs share: check folders, print, export, render a board."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dmlbench.common.errors import EXIT_FAILED_CELLS, UserError

if TYPE_CHECKING:
    from dmlbench.analysis.records import Record
    from dmlbench.storage.cell import Cell
    from dmlbench.storage.store import Store


def check_outputs(results: Path, leaderboards: Path, writing: bool = True) -> None:
    """UserError now rather than after hours: a folder that cannot be written, a CSV that is wrong.

    results.csv is first written again from the cells, so only CSVs that the user added can be
    wrong. A dry run (``writing`` is False) writes nothing and reads only those.
    """
    from dmlbench.analysis.csv_files import export, read_tidy, tidy_files
    from dmlbench.common.files import check_may_write, check_writable
    from dmlbench.storage.store import Store

    for folder, flag in ((results, "--results"), (leaderboards, "--leaderboards")):
        (check_writable if writing else check_may_write)(folder, flag)
    store = Store(results)
    exported = bool(store.ids())
    if exported and writing:
        export(store)
    for path in tidy_files(results):
        if writing or not exported or path.name != "results.csv":
            read_tidy(path)


def finish(
    cells: list[Cell], dataset: str, results: Path, leaderboards: Path, as_json: bool
) -> None:
    """Render the board of ``dataset`` and print the cells; exit with 1 if a cell failed."""
    from dmlbench.analysis.records import tidy
    from dmlbench.report.render import write_board
    from dmlbench.report.terminal import print_tables

    board = write_board(results, dataset, leaderboards)
    if as_json:
        click.echo(json.dumps([cell.as_json() for cell in cells], indent=1))
    elif board is None:
        click.echo(
            f"{results} has no row of {dataset}, so there is no board: no model was measured here, "
            "as in a shard that has none"
        )
    else:
        print_tables(tidy(cells))
        click.echo(
            f"CSV:   {results / 'results.csv'} (one row per metric), {results / 'wide.csv'} "
            f"(one row per model)\nBoard: {board}"
            "\n       ('dmlbench leaderboard' adds plots, and a page of all boards)"
        )
    if not all(cell.ok for cell in cells):
        sys.exit(EXIT_FAILED_CELLS)


def weights_of(checkpoint: Path | None, zoo: str | None) -> Path | None:
    """``--checkpoint``, or the folder of the model that ``--zoo`` names, fetched if need be."""
    from dmlbench.zoo.fetch import zoo_folder

    if checkpoint is not None and zoo is not None:
        raise UserError("--checkpoint and --zoo both name weights: give one of them")
    return checkpoint if zoo is None else zoo_folder(zoo)


def stored(results: Path, dataset: str | None) -> tuple[list[Cell], list[Record]]:
    """Every stored cell of a data set, or of all, and the records of these and of the CSVs.

    Damaged cells are named and left out. A CSV may hold rows of which no cell is stored, as those
    that the repository has. ``dataset``: a spec in any spelling, or a name alone: ``folder``.
    """
    from dmlbench.analysis.csv_files import stored_records
    from dmlbench.analysis.differences import dataset_as_stored
    from dmlbench.storage.store import Store, no_results

    store = Store(results)
    warn_of_damage(store)
    every = store.cells()
    records = stored_records(store, every)
    if not records:
        raise UserError(no_results(results))
    if dataset is None:
        return every, records
    known = sorted({record["dataset"] for record in records})
    wanted = {one for one in known if dataset in (one, one.partition(":")[0])}
    with suppress(UserError):  # it is the spec of no data set
        wanted = wanted or {dataset_as_stored(dataset, known)} & {*known}
    if not wanted:
        raise UserError(f"no results of {dataset!r} in {results}: there are {', '.join(known)}")
    return (
        [cell for cell in every if cell.about.dataset in wanted],
        [record for record in records if record["dataset"] in wanted],
    )


def warn_of_damage(store: Store) -> None:
    """Print a warning for each cell file that cannot be read."""
    from dmlbench.storage.store import damaged_cell

    for path in store.read()[1]:
        click.echo(f"warning: {damaged_cell(path)}", err=True)


def export_folder(results: Path) -> None:
    """Bring the CSVs of a results folder up to date with its cells, if it has any."""
    from dmlbench.analysis.csv_files import export
    from dmlbench.storage.store import Store

    if (results / "cells").is_dir():
        store = Store(results)
        warn_of_damage(store)
        if store.ids():
            export(store)
