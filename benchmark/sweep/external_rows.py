"""Adversarial images from outside that break queries which the row's own attacks left.

Each file is a cell of its own (``external``), and ``join`` computes the row's Robust R@1 again with
them, as a cell that counts before the one without.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dmlbench.analysis.external import KIND
from dmlbench.analysis.lookup import as_stored, measured_cells
from dmlbench.analysis.records import ROW
from dmlbench.analysis.where import DIGESTS, choices, condition
from dmlbench.attacks import moved_query
from dmlbench.common.errors import UserError
from dmlbench.common.hashing import identity
from dmlbench.common.lazy import np
from dmlbench.core.naming import at_other_radius
from dmlbench.metrics.bootstrap import bootstrap_mean
from dmlbench.metrics.names import EXTERNAL, WORST, WORST_CASE
from dmlbench.storage.cell import Cell, PlannedCell
from dmlbench.storage.store import Store

if TYPE_CHECKING:
    import numpy.typing as npt

    Values = npt.NDArray[np.float64]

TOLD_BY = (*ROW, *DIGESTS)  # columns that tell rows apart
COLUMNS = moved_query.columns(EXTERNAL)
RIGHT = COLUMNS[0].name  # 100 where the top-1 is right, else 0


@dataclass(frozen=True)
class StoredRow:
    """A model under one suite and with one number of queries.

    Attributes:
        worst: its cells of Robust R@1, first the one that boards show; as the attacks found it,
            without images from outside.
        external: its cells of images from outside.
        eps: radius of the ball of its attacks.
    """

    worst: list[Cell]
    external: list[Cell]
    eps: float


def find_row(store: Store, name: str, where: Sequence[str] = ()) -> StoredRow:
    """The row that a name and conditions choose.

    Args:
        store: the results folder.
        name: the model as ``compare`` takes it: its defense, label or checkpoint.
        where: conditions ``column=text`` on columns of ``records.ROW`` or ``where.DIGESTS``.

    Raises:
        UserError: there is no such row, there are several, or it has no Robust R@1.
    """
    name = as_stored(name)
    conditions = [condition(text, TOLD_BY) for text in where]

    def wanted(cell: Cell) -> bool:
        told = _told(cell)
        return all(one.meets(told[one.key]) for one in conditions)

    mine = measured_cells(name, store, wanted, where)
    chosen = f"{name!r}{''.join(f' with {text}' for text in where)}"
    rows = [group for group in _rows(mine) if any(map(_is_worst, group))]
    if not rows:
        raise UserError(
            f"{chosen} has no {WORST} in {store.root}: attack the model with a suite first, e.g. "
            "--suite strict"
        )
    if len(rows) > 1:
        said = choices([_told(row[0]) for row in rows], TOLD_BY)
        raise UserError(f"{chosen} is {len(rows)} rows ({said}): choose with --where")
    (row,) = rows
    worst = sorted(
        filter(_is_worst, row), key=lambda cell: (cell.about.attack != WORST_CASE, cell.id)
    )
    eps = {
        source.facts["attack_values"]["eps"]
        for cell in worst
        for one in cell.facts["cells"]
        if (source := store.get(one)) is not None and source.facts["kind"] == "attack"
    }
    if len(eps) != 1:
        raise UserError(f"the attacks of {chosen} are not there, or have balls of several sizes")
    return StoredRow(worst, list(filter(_is_external, row)), eps.pop())


def join(store: Store) -> list[Cell]:
    """Draw the Robust R@1 of every row that has images from outside with them; returns the cells.

    What is drawn already is left as it is. Cells of a smaller number of files are deleted.
    """
    joined = []
    for row in _rows(store.cells()):
        files = sorted(filter(_is_external, row), key=lambda cell: cell.id)
        files = [cell for cell in files if store.done(cell.id) is not None]
        if not files:
            continue
        wanted = []
        for plain in filter(_is_worst, row):
            ids = [*plain.facts["cells"], *(cell.id for cell in files)]
            facts = plain.facts | {"cells": ids, "external_files": len(files)}
            known = store.done(identity(facts))
            if known is None or known.started < plain.started:
                values = robust(store, plain, files)
                planned = PlannedCell(
                    id=identity(facts), facts=facts, about=plain.about, columns=plain.columns
                )
                known = planned.measured(
                    {WORST: bootstrap_mean(values)}, {}, time.time(), 0.0, files[-1].provenance
                )
                store.put(known, {WORST: values})
            wanted.append(known)
        for old in row:
            if "external_files" in old.facts and old.id not in {cell.id for cell in wanted}:
                store.remove(old.id)
        joined += [*files, *wanted]
    return joined


def joined_rows(store: Store, cells: Sequence[Cell]) -> list[Cell]:
    """``join``, and of its cells those of the same rows as ``cells``."""
    rows = {_row(cell) for cell in cells}
    return [cell for cell in join(store) if _row(cell) in rows]


def source_facts(store: Store, worst: Cell) -> dict[str, Any]:
    """Checkpoint, data, network and training that a worst case was measured with."""
    cells = (store.get(one) for one in worst.facts["cells"])
    facts: dict[str, Any] = next((cell.facts for cell in cells if cell is not None), {})
    return {k: facts[k] for k in ("checkpoint", "data", "model", "training") if k in facts}


def robust(store: Store, worst: Cell, files: Iterable[Cell]) -> Values:
    """Outcomes of a worst case with those of images from outside, where there are any."""
    values = values_of(store, worst, WORST)
    for cell in files:
        values = lower(values, values_of(store, cell, RIGHT))
    return values


def lower(values: Values, others: Values) -> Values:
    """The smaller of two outcomes per query; NaN in ``others`` changes nothing."""
    lower: Values = np.where(np.isnan(values), np.nan, np.fmin(values, others))
    return lower


def values_of(store: Store, cell: Cell, column: str) -> Values:
    """(N,) outcomes of a stored cell in a column, by position in the test split."""
    found: Values = store.outcomes(cell.id)[column].to_numpy(dtype=np.float64)
    return found


def _is_worst(cell: Cell) -> bool:
    """True for a Robust R@1 as the attacks found it in the ball of the protocol."""
    drawn = cell.facts.get("kind") == WORST_CASE and "external_files" not in cell.facts
    return drawn and cell.ok and not at_other_radius(cell.about.attack)


def _is_external(cell: Cell) -> bool:
    return cell.facts.get("kind") == KIND and cell.ok


def _told(cell: Cell) -> dict[str, str]:
    """Column -> text of what is the same in all cells of one row."""
    about = {key: str(getattr(cell.about, key)) for key in ROW}
    return about | {key: str(cell.facts.get(key.removesuffix("_sha256"), "")) for key in DIGESTS}


def _row(cell: Cell) -> tuple[str, ...]:
    """The values by which the row of a cell is known."""
    return tuple(_told(cell).values())


def _rows(cells: Iterable[Cell]) -> list[list[Cell]]:
    found: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        found.setdefault(_row(cell), []).append(cell)
    return list(found.values())
