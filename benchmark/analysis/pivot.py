"""Choose among tidy records, and lay them out by two of their columns. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec.structs import replace

from dmlbench.analysis.records import ROW, TIDY_COLUMNS, Record, record_order, tidy
from dmlbench.analysis.seeds import Spread, spread
from dmlbench.analysis.where import Condition
from dmlbench.common.errors import UserError
from dmlbench.common.suggest import unknown
from dmlbench.storage.cell import Cell

_IDENTIFYING = (*ROW, "attack_resolved", "metric")


def column(name: str) -> str:
    """``name`` if it is a tidy column; UserError with a suggestion otherwise."""
    if name in TIDY_COLUMNS:
        return name
    raise UserError(unknown("column", name, TIDY_COLUMNS))


def chosen(cells: Iterable[Cell], conditions: Sequence[Condition]) -> list[Cell]:
    """The cells that meet every condition, each with those of its metrics that do."""
    found = []
    for cell in cells:
        records = [r for r in tidy([cell]) if _meets(r, conditions)]
        names = {record["metric"] for record in records}
        if cell.ok:
            cell = replace(
                cell,
                metrics={name: cell.metrics[name] for name in cell.metrics if name in names},
                columns={name: cell.columns[name] for name in cell.columns if name in names},
            )
        if records:
            found.append(cell)
    return found


def pivot(
    cells: Iterable[Cell], rows: Sequence[str], columns: Sequence[str]
) -> dict[tuple[str, ...], dict[tuple[str, ...], Spread]]:
    """Row -> column -> the value there, over the seeds if they are in neither.

    Of two records of a number the one that tables show counts (``record_order``).

    Raises:
        UserError: values that differ in more than the seed would fall into one place.
    """
    records = sorted((r for r in tidy(cells) if r["status"] == "ok"), key=record_order)
    newest = {tuple(r[name] for name in _IDENTIFYING): r for r in records}
    places: dict[tuple[str, ...], dict[tuple[str, ...], list[dict[str, Any]]]] = {}
    for r in newest.values():
        row, column = (tuple(str(r[name]) for name in names) for names in (rows, columns))
        places.setdefault(row, {}).setdefault(column, []).append(r)
    table: dict[tuple[str, ...], dict[tuple[str, ...], Spread]] = {}
    for row, line in places.items():
        for column, found in line.items():
            differ = [n for n in _IDENTIFYING if n != "seed" and len({r[n] for r in found}) > 1]
            if differ:
                raise UserError(
                    f"{len(found)} values fall into one place: they differ in {', '.join(differ)}; "
                    "choose with --where, or add a column to --pivot"
                )
            table.setdefault(row, {})[column] = spread([r["value"] for r in found])
    return table


def _meets(record: Record, conditions: Sequence[Condition]) -> bool:
    return all(one.meets(str(record.get(one.key, ""))) for one in conditions)
