"""Two models of a results folder compared: by queries, or by rows where only CSVs lie."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from dmlbench.analysis import compare, unpaired
from dmlbench.analysis.compare import Difference
from dmlbench.analysis.csv_files import stored_records
from dmlbench.analysis.left_out import left_out
from dmlbench.analysis.lookup import as_stored, has_cells
from dmlbench.analysis.records import Record
from dmlbench.analysis.records import rows as table_rows
from dmlbench.common.errors import UserError
from dmlbench.core import spec
from dmlbench.core.naming import with_plain_paths
from dmlbench.datasets.base import DATASETS
from dmlbench.storage.store import Store, no_results
from dmlbench.zoo.registry import models


@dataclass(frozen=True)
class Comparison:
    """The differences B - A of two models.

    Attributes:
        differences: one for each metric that both have, in table order.
        a: a record of the first model.
        b: a record of the second model.
        paired: they were taken query by query; False: from rows, as of independent queries.
        collapsed: of A and B those that retrieve nothing any more.
        left_out: the attacks that are not compared, and why, in one line; empty if there are none.
    """

    differences: list[Difference]
    a: Record
    b: Record
    paired: bool
    collapsed: tuple[str, ...]
    left_out: str


def of_names(a: str, b: str, results: Path, dataset: str | None) -> Comparison:
    """Compare two models that were measured.

    Args:
        a: a defense or a label as tables show it, ``file.py:Class``, a checkpoint, the folder of a
            model, or a model of the zoo.
        b: the other one.
        results: the results folder.
        dataset: spec of the data set; None: any.

    Raises:
        UserError: one of them was not measured or is several models, or they share no metric.
    """
    store = Store(results)
    cells = store.cells()
    a, b = map(as_stored, (a, b))
    paired = has_cells(a, cells) and has_cells(b, cells)
    rows = [] if paired else stored_records(store, cells)
    if not (paired or rows or {a, b} <= models().keys()):
        raise UserError(no_results(results))
    if dataset is not None:
        known = {cell.about.dataset for cell in cells} | {row["dataset"] for row in rows}
        dataset = dataset_as_stored(dataset, known)
    if paired:
        left, right = (compare.find(name, store, dataset) for name in (a, b))
        ours, theirs, found = left.records, right.records, compare.compare(left, right)
    else:
        ours, theirs = (unpaired.find(name, rows, dataset) for name in (a, b))
        found = unpaired.compare(ours, theirs, (a, b))
    sides = {"A": ours, "B": theirs}
    collapsed = tuple(
        name for name, side in sides.items() if any(row.collapsed for row in table_rows(side))
    )
    return Comparison(found, ours[0], theirs[0], paired, collapsed, left_out(ours, theirs))


def dataset_as_stored(dataset: str, known: Container[str]) -> str:
    """The spec of a data set as results have it.

    Raises:
        UserError: none has it, and it is the spec of no data set.
    """
    plain = with_plain_paths(dataset)
    return plain if plain in known else spec.shown(spec.parse(dataset, DATASETS))
