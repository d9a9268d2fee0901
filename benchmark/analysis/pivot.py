"""Filter cells and records, and arrange values in a table by chosen columns. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from msgspec.structs import replace

from dmlbench.analysis.records import MODEL, ROW, TIDY_COLUMNS, Record, record_order, tidy
from dmlbench.analysis.records import rows as table_rows
from dmlbench.analysis.seeds import Spread, by_configuration, spread_of
from dmlbench.analysis.where import DIGESTS, Condition
from dmlbench.common.errors import UserError
from dmlbench.common.suggest import unknown
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.storage.cell import Cell

_IDENTIFYING = (*ROW, "attack", "attack_resolved", "metric")
OF_MODELS = (*MODEL, *DIGESTS)
"""Columns that all records of a row of a table share."""


@dataclass(frozen=True)
class Place:
    """A value of the table: over seeds, and whether a model among them has collapsed."""

    value: Spread
    collapsed: bool


@dataclass(frozen=True)
class _Number:
    """A number as tables show it: its heading there, and whether its model has collapsed."""

    heading: str
    record: Record
    estimate: Estimate
    collapsed: bool


Table = dict[tuple[str, ...], dict[tuple[str, ...], Place]]


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
    records: Iterable[Record],
    rows: Sequence[str],
    columns: Sequence[str],
    conditions: Sequence[Condition] = (),
) -> Table:
    """Row -> column -> value, averaged over seeds unless ``seed`` names a row or a column.

    The values are those of the other tables (``records.rows``, ``seeds.by_configuration``).

    Args:
        records: every tidy record of the models, from which the one that counts is chosen.
        rows: tidy columns whose values name the rows.
        columns: tidy columns whose values name the columns. A metric is named by its heading, ``CA+
            (steps=1)``, unless ``attack`` is a name too.
        conditions: what the values must meet.

    Raises:
        UserError: no value meets the conditions, or values that differ in more than the seed would
            share a place, or a name.
    """
    names = (*rows, *columns)
    numbers = _counting(records, conditions)
    if not numbers:
        raise UserError("--pivot has nothing to show: no number of the tables meets --where")
    changed = sorted({one.heading for one in numbers if one.heading != one.record["metric"]})
    if changed and not {"attack", "metric"} & {*names}:
        raise UserError(
            f"--pivot would not say that numbers are {', '.join(changed)}: add the column metric"
        )
    places: dict[tuple[str, ...], dict[tuple[str, ...], list[_Number]]] = {}
    for one in numbers:
        told = one.record if "attack" in names else one.record | {"metric": one.heading}
        row, column = (tuple(str(told[name]) for name in side) for side in (rows, columns))
        places.setdefault(row, {}).setdefault(column, []).append(one)
    table = {
        row: {column: _averaged(found) for column, found in line.items()}
        for row, line in places.items()
    }
    _check_models(numbers, names)
    return table


def _counting(records: Iterable[Record], conditions: Sequence[Condition]) -> list[_Number]:
    """The numbers that tables show of ``records``, and of these the ones that meet the conditions.

    A condition on a model's row chooses among all records: it may name weights or images that
    others took the place of.
    """
    mine = meeting(records, [one for one in conditions if one.key in OF_MODELS])
    found = {}
    for group in by_configuration(table_rows(mine)):
        for row in group:
            for heading, record in row.records.items():
                # clean numbers are part of several rows: of each suite and number of queries
                key = (heading, *(record[name] for name in (*ROW, *DIGESTS)))
                estimate = row.estimates[heading]
                found[key] = _Number(heading, record, estimate, bool(row.collapsed))
    kept = [one for one in found.values() if meeting([one.record], conditions)]
    return sorted(kept, key=lambda one: record_order(one.record))


def _averaged(found: Sequence[_Number]) -> Place:
    """The value over seeds of the numbers in one place."""
    if differ := _differing([one.record for one in found], _IDENTIFYING):
        _refuse(f"{len(found)} values", differ)
    value = spread_of(found[0].record["metric"], [one.estimate for one in found])
    return Place(value, any(one.collapsed for one in found))


def _check_models(numbers: Iterable[_Number], names: Iterable[str]) -> None:
    """UserError if numbers that the names do not tell apart are of several models or images."""
    told = [name for name in names if name in OF_MODELS]
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for one in numbers:
        groups.setdefault(tuple(one.record[name] for name in told), []).append(one.record)
    for name, group in groups.items():
        seeds: dict[int, list[Record]] = {}
        for record in group:
            seeds.setdefault(record["seed"], []).append(record)
        differ = _differing(group, (*MODEL, "data"))
        if any(_differing(some, ["checkpoint_sha256"]) for some in seeds.values()):
            differ.append("checkpoint_sha256")
        if differ:
            _refuse(f"values of several models ({' '.join(map(str, name))})", differ)


def _differing(records: Sequence[Record], names: Iterable[str]) -> list[str]:
    """The columns but ``seed`` in which the records differ; scores may lack their digests."""
    found = {name: {one[name] for one in records} for name in names if name != "seed"}
    return [name for name, v in found.items() if len(v - {""} if name in DIGESTS else v) > 1]


def _refuse(what: str, differ: Sequence[str]) -> NoReturn:
    raise UserError(
        f"{what} fall into one place: they differ in {', '.join(differ)}; choose with --where, or "
        "add a column to --pivot"
    )


def meeting(records: Iterable[Record], conditions: Sequence[Condition]) -> list[Record]:
    """The records that meet every condition; an absent value counts as empty text."""
    return [record for record in records if meets(record, conditions)]


def meets(record: Record, conditions: Iterable[Condition]) -> bool:
    """True if the record meets every condition; an absent value counts as empty text."""
    return all(one.meets(_text(record.get(one.key))) for one in conditions)


def _text(value: object) -> str:
    return "" if value is None else str(value)
