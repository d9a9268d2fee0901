"""Steps that several verbs share: read specs, open a session, export, print, render a board."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from dmlbench.common.errors import EXIT_FAILED_CELLS, UserError

if TYPE_CHECKING:
    from dmlbench.attacks.base import Attack
    from dmlbench.core.protocol import Recipe
    from dmlbench.core.registry import Component, Registry
    from dmlbench.datasets.base import Dataset
    from dmlbench.storage.store import Cell, Store
    from dmlbench.sweep.session import Session
    from dmlbench.sweep.status import Known

C = TypeVar("C", bound="Component")


def parse_all(specs: tuple[str, ...], registry: Registry[C]) -> list[C]:
    """The components that the specs name; ``all`` stands for every registered one."""
    from dmlbench.core import spec

    names = [name for text in specs for name in (registry.names() if text == "all" else [text])]
    return [spec.parse(name, registry) for name in names]


def parse_attacks(specs: tuple[str, ...], suites: tuple[str, ...]) -> list[Attack]:
    """The attacks asked for, once for each suite; a suite in an attack's own spec wins."""
    from dataclasses import replace

    from dmlbench.attacks.base import ATTACKS
    from dmlbench.core.protocol import ERS_ATTACKS

    if not specs and not suites:
        raise UserError("name an attack (--attack ca+), or the attacks of ERS (--suite strict)")
    chosen = parse_all(specs or ERS_ATTACKS, ATTACKS)
    return [
        one if one.suite else replace(one, suite=suite)
        for suite in suites or (None,)
        for one in chosen
    ]


def parse_recipe(dataset: Dataset, changes: str) -> Recipe:
    """The data set's training recipe, changed by the user's ``key=value,...``."""
    from dmlbench.core import spec
    from dmlbench.core.protocol import Recipe

    usual = dataset.protocol.recipe
    pairs = {p.name: p.show(getattr(usual, p.name)) for p in spec.parameters(Recipe)}
    pairs |= spec.split_pairs(changes, f"recipe {changes!r}")
    return spec.build(Recipe, pairs, "recipe")


def check_queries(queries: int | None, session: Session) -> None:
    """UserError if there are not more test images than ``queries``."""
    if queries is not None and queries >= (images := len(session.data.test)):
        raise UserError(
            f"--queries {queries}: the test split has {images} images; leave it out to attack each"
        )


@contextmanager
def open_session(
    dataset: Dataset,
    results: Path,
    leaderboards: Path | None,
    data_root: Path | None,
    cache: Path | None,
    device: str,
    batch_size: int | None,
    threads: int | None,
    precision: str,
    writing: bool = True,
    torchrun: bool = False,
    keep: int = 0,
) -> Iterator[Session]:
    """The session of a run: folders are checked first, progress goes to standard error."""
    from rich.console import Console

    from dmlbench.analysis.csv_files import read_folder
    from dmlbench.common.console_progress import reporter_for
    from dmlbench.common.files import check_writable
    from dmlbench.common.progress import QuietReporter
    from dmlbench.compute.device import Compute, launched, leads, local_device
    from dmlbench.storage.store import Store
    from dmlbench.sweep.session import Session

    if launched() and not torchrun:
        raise UserError("torchrun is for 'dmlbench train'; what it trained, 'dmlbench run' finds")
    compute = Compute(local_device(device), batch_size, threads, precision)
    store = Store(results)
    if writing:
        check_writable(results, "--results")
    if writing and leaderboards is not None:
        check_writable(leaderboards, "--leaderboards")
        if store.cells():
            store.export()
        read_folder(results)  # a malformed CSV is reported now, not after the work
    with reporter_for(Console(stderr=True)) if leads() else QuietReporter() as reporter:
        yield Session(dataset, data_root, cache, store, compute, reporter, keep)


def open_store(session: Session, repair: bool = True) -> Known:
    """The stored cells; damaged ones are named, and moved away if ``repair``."""
    from dmlbench.sweep.status import Known

    store = session.store
    cells, damaged = store.read()
    for path in damaged:
        fate = f"moved to {store.quarantine}" if repair else "left out"
        session.reporter.warn(f"{path} is damaged and {fate}; its cell is done again")
    if repair:
        store.repair(damaged)
    return Known(store.whole(cells))


def finish(cells: list[Cell], session: Session, leaderboards: Path, as_json: bool) -> None:
    """Write CSVs and board, print the cells; exit with 1 if one failed."""
    from dmlbench.cli.console import print_table
    from dmlbench.report.render import write_board

    tidy, wide = session.store.export()
    board = write_board(session.store.root, session.dataset.card.name, leaderboards)
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
    """Every stored cell of a data set, or of all; damaged ones are named and left out."""
    from dmlbench.storage.store import Store

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
    """Print a warning for each cell file that cannot be read."""
    for path in store.read()[1]:
        click.echo(f"warning: {path} is damaged and left out; the next run redoes it", err=True)


def export(results: Path) -> None:
    """Bring the CSVs of a results folder up to date with its cells, if it has any."""
    from dmlbench.storage.store import Store

    if (results / "cells").is_dir():
        store = Store(results)
        warn_of_damage(store)
        if store.cells():
            store.export()
