"""What several verbs do: read specs, open a session, finish with exports and a board."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from dmlbench.errors import EXIT_FAILED_CELLS, UserError

if TYPE_CHECKING:
    from dmlbench.attacks.base import Attack
    from dmlbench.datasets.base import Dataset
    from dmlbench.matrix import Session
    from dmlbench.registry import Component, Registry
    from dmlbench.store import Cell, Store

C = TypeVar("C", bound="Component")


def parse_all(specs: tuple[str, ...], registry: Registry[C]) -> list[C]:
    """The components of the specs; ``all`` stands for every registered name."""
    from dmlbench import spec

    names = [name for text in specs for name in (registry.names() if text == "all" else [text])]
    return [spec.parse(name, registry) for name in names]


def parse_attacks(specs: tuple[str, ...], suite: str | None) -> list[Attack]:
    """The attacks asked for, following the suite if one is named."""
    from dataclasses import replace

    from dmlbench.attacks.base import ATTACKS
    from dmlbench.recipe import ERS_ATTACKS

    if not specs and not suite:
        raise UserError("name an attack (--attack ca+), or the attacks of ERS (--suite strict)")
    chosen = parse_all(specs or ERS_ATTACKS, ATTACKS)
    return [one if one.suite else replace(one, suite=suite) for one in chosen]


def spelt(component: Component) -> dict[str, str]:
    """The parameters of a component as a user would write them."""
    from dmlbench import spec

    return {p.name: p.show(getattr(component, p.name)) for p in spec.parameters(type(component))}


@contextmanager
def open_session(
    dataset: Dataset,
    results: Path,
    leaderboards: Path,
    data_root: Path | None,
    device: str,
    batch_size: int | None,
    threads: int | None,
    precision: str,
) -> Iterator[Session]:
    """Data, store and device, each checked before any work, and progress on standard error."""
    from rich.console import Console

    from dmlbench.compute import Compute
    from dmlbench.files import check_writable
    from dmlbench.matrix import Session
    from dmlbench.progress import reporter_for
    from dmlbench.report.results import read_folder
    from dmlbench.store import Store

    compute = Compute(device, batch_size, threads, precision)
    compute.check()
    data = dataset.load(data_root)
    check_writable(results, "--results")
    check_writable(leaderboards, "--leaderboards")
    export(results)
    read_folder(results)  # what is wrong with a CSV there is said now, not after the work
    with reporter_for(Console(stderr=True)) as reporter:
        yield Session(dataset, data, Store(results), compute, reporter)


def finish(cells: list[Cell], session: Session, leaderboards: Path, as_json: bool) -> None:
    """Export, render, print; exit with 1 if a cell failed."""
    from dmlbench.report.console import print_table

    tidy, wide = session.store.export()
    board = render_board(session.store.root, session.dataset.card.name, leaderboards)
    if as_json:
        click.echo(json.dumps(cells, indent=1))
    else:
        print_table(cells)
        click.echo(
            f"CSV:   {tidy} (a row a metric), {wide} (a row a model)\nBoard: {board}"
            "\n       ('dmlbench leaderboard' adds plots, and a page of all boards)"
        )
    if any(cell["status"] != "ok" for cell in cells):
        sys.exit(EXIT_FAILED_CELLS)


def stored(results: Path, dataset: str | None) -> list[Cell]:
    """Every stored cell of the data set, or of all; a damaged one is named and left out."""
    from dmlbench.store import Store

    store = Store(results)
    warn_of_damage(store)
    cells = [c for c in store.cells() if dataset in (None, c["about"]["dataset"])]
    if not cells:
        raise UserError(
            f"no results{f' of {dataset}' if dataset else ''} in {results}: "
            "begin with 'dmlbench run --defense hm --attack ca+'"
        )
    return cells


def warn_of_damage(store: Store) -> None:
    """Name each cell that cannot be read."""
    for path in store.damaged():
        click.echo(f"warning: {path} is damaged and left out; the next run redoes it", err=True)


def export(results: Path) -> None:
    """Bring the CSVs of a results folder up to date with its cells, if it has any."""
    from dmlbench.store import Store

    if (results / "cells").is_dir():
        store = Store(results)
        warn_of_damage(store)
        if store.cells():
            store.export()


def render_board(results: Path, dataset: str, folder: Path) -> Path:
    """Write the tables of a data set from the CSVs; returns the path of the Markdown."""
    from dmlbench.report import boards
    from dmlbench.report.results import read_folder

    every = boards.boards(read_folder(results))
    (board,) = [board for board in every if board.name == dataset]
    return boards.write_tables(board, folder)[0]
