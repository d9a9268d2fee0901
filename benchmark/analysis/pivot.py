"""Filter cells and records, and arrange values in a table by chosen columns. Pure functions."""

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

_IDENTIFYING = (*ROW, "attack", "attack_resolved", "metric")


def column(name: str) -> str:
    """``name`` if it is a tidy column; else UserError with a suggestion."""
    if name in TIDY_COLUMNS:
        return name
    raise UserError(unknown("column", name, TIDY_COLUMNS))


def chosen(cells: Iterable[Cell], conditions: Sequence[Condition]) -> list[Cell]:
    """The cells, and of each the metrics, that meet every condition."""
    found = []
    for cell in cells:
        records = meeting(tidy([cell]), conditions)
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
    records: Iterable[Record], rows: Sequence[str], columns: Sequence[str]
) -> dict[tuple[str, ...], dict[tuple[str, ...], Spread]]:
    """Row -> column -> value, averaged over seeds unless ``seed`` is among the columns.

    Args:
        records: tidy records to arrange.
        rows: tidy columns whose values name the rows.
        columns: tidy columns whose values name the columns.

    Raises:
        UserError: values that differ in more than the seed would share a place in the table.
    """
    records = sorted((r for r in records if r["status"] == "ok"), key=record_order)
    # of several records of one number the last counts, as in tables
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


def meeting(records: Iterable[Record], conditions: Sequence[Condition]) -> list[Record]:
    """The records that meet every condition; an absent value counts as empty text."""
    return [
        record
        for record in records
        if all(one.meets(_text(record.get(one.key))) for one in conditions)
    ]


def _text(value: object) -> str:
    return "" if value is None else str(value)
