"""All boards of some records, and their files: tables in three formats, and plots."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from dmlbench.analysis.csv_files import read_folder
from dmlbench.analysis.records import Record
from dmlbench.analysis.where import condition
from dmlbench.common.errors import UserError
from dmlbench.common.files import write_if_changed
from dmlbench.common.suggest import unknown
from dmlbench.datasets.base import DATASETS
from dmlbench.report import latex, markdown, spreadsheet
from dmlbench.report.board import Board, base, tables
from dmlbench.report.entries import Entry, measured
from dmlbench.report.literature import published

RENDERERS: dict[str, Callable[[Board], str]] = {
    "md": markdown.render,
    "tex": latex.render,
    "csv": spreadsheet.render,
}
FILTERS: dict[str, Callable[[Entry], tuple[str, ...]]] = {
    "suite": lambda e: (e.suite,),
    "model": lambda e: (e.model,),
    "loss": lambda e: (e.loss,),
    "defense": lambda e: (e.label, e.defense),
    "eta": lambda e: ("" if e.eta is None else str(e.eta),),
    "recipe": lambda e: (e.recipe,),
    "precision": lambda e: (e.precision or "fp32",),
    "eot": lambda e: (e.eot,),
    "queries": lambda e: (e.queries or "all",),
    "source": lambda e: ("published", e.place) if e.paper else ("here",),
}
"""Key of ``--where`` -> the texts of an entry that it is compared with; one must match."""


def boards(
    records: Iterable[Record],
    literature: bool = True,
    columns: Sequence[str] = (),
    where: Sequence[str] = (),
) -> list[Board]:
    """A board for each data set: first those measured here, by name, then published ones alone.

    Args:
        records: tidy records.
        literature: True to show published rows as well.
        columns: metrics to show; empty: those of the papers.
        where: conditions ``key=pattern`` that a line must meet; ``*`` stands for any text.

    Raises:
        UserError: no line has such a column, a condition is malformed, or no line meets them all.
    """
    ours = measured(records)
    theirs = published() if literature else []
    _check_columns(columns, [*ours, *theirs])
    conditions = [condition(text, FILTERS) for text in where]
    names = [*sorted({base(e.dataset) for e in ours}), *dict.fromkeys(e.dataset for e in theirs)]
    found = []
    for name in dict.fromkeys(names):
        own = [e for e in (*ours, *theirs) if base(e.dataset) == name]
        summary, note, related = _card(name)
        own += [e for e in theirs if e.dataset == related]
        kept = tables(
            [e for e in own if all(c.meets(*FILTERS[c.key](e)) for c in conditions)], columns
        )
        if kept:
            found.append(Board(name, summary, note, kept))
    if where and not found:
        raise UserError(f"no line of any board meets {' and '.join(where)}")
    return found


def write_board(results: Path, dataset: str, folder: Path) -> Path | None:
    """Write the tables of a data set from the CSVs in ``results``; returns the Markdown file.

    None, and nothing is written, if the CSVs have no row of it.
    """
    found = [board for board in boards(read_folder(results)) if board.name == dataset]
    return next(iter(write_tables(found[0], folder))) if found else None


def write_tables(
    board: Board, folder: Path, formats: Collection[str] = tuple(RENDERERS)
) -> dict[Path, bool]:
    """Write ``<data set>.md``, ``.tex`` and ``.csv``, or those of them that are in ``formats``.

    Returns:
        Path of a file -> True if it was written, False if it was the same already.
    """
    return {
        (path := folder / f"{board.name}.{kind}"): write_if_changed(path, render(board).encode())
        for kind, render in RENDERERS.items()
        if kind in formats
    }


def _card(name: str) -> tuple[str, str, str]:
    """Summary, note and related data set with published rows; empty if it is not registered."""
    if name not in DATASETS.names():
        return "", "", ""
    card = DATASETS.get(name)().protocol
    return (
        card.summary[:1].upper() + card.summary[1:],
        card.note and f"Recipe of {name}: {card.note}",
        card.literature,
    )


def _check_columns(columns: Sequence[str], entries: Sequence[Entry]) -> None:
    known = list(
        dict.fromkeys(name for entry in entries for name in (*entry.numbers, *entry.failed))
    )
    for name in columns:
        if name not in known:
            raise UserError(unknown("column", name, known))
