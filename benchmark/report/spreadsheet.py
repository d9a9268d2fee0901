"""A board as one CSV: the numbers as shown, with intervals and origins in columns."""

from __future__ import annotations

import csv
import io

from dmlbench.analysis.csv_files import BOARD
from dmlbench.common.spreadsheet import guarded
from dmlbench.report.board import Board, BoardCell, Line, Table
from dmlbench.report.columns import in_order

INCLUDES = "worst case includes"


def render(board: Board) -> str:
    """A row for each line; columns for each metric, its interval and its deviation over seeds.

    A further column names the seeds of a number that other seeds of its row lack.
    """
    metrics = in_order({c.name for table in board.tables for c in table.columns if c.better})
    records = [_record(table, line) for table in board.tables for line in table.lines]
    used = {name for record in records for name in record}
    facts = [*BOARD, "loss", "defense", "spec", "eta", "recipe"]
    facts += ["precision", "queries", "collapsed", "source", "url", "n", "seeds"]
    facts += ["eot"] * any("eot" in record for record in records)
    facts += ["flags"] * any("flags" in record for record in records)
    columns = [name for metric in metrics for name in _names(metric) if name in used]
    columns += [INCLUDES] * (INCLUDES in used)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [*facts, *columns]
    writer.writerow(map(guarded, names))
    writer.writerows([guarded(record.get(name, "")) for name in names] for record in records)
    return text.getvalue()


def _names(metric: str) -> list[str]:
    return [metric, *(f"{metric} {end}" for end in ("low", "high", "sd", "seeds"))]


def _record(table: Table, line: Line) -> dict[str, str | int | None]:
    entry = line.entry
    by_name = {c.name: cell for c, cell in zip(table.columns, line.cells, strict=True)}
    rank = by_name.get("Rank", BoardCell(""))
    record: dict[str, str | int | None] = {
        "dataset": table.dataset,
        "suite": entry.suite,
        "rank": rank.text.rstrip("=") if entry.score is not None else "",
        "model": entry.model,
        "loss": entry.loss,
        "defense": entry.label,
        "spec": entry.defense,
        "eta": entry.eta,
        "recipe": entry.recipe,
        "precision": entry.precision or "fp32",
        "queries": "" if entry.paper else entry.queries or "all",
        "collapsed": "yes" if entry.collapsed else "no",
        "source": entry.place if entry.paper else "here",
        "url": entry.paper.url if entry.paper else "",
        "n": entry.n,
        "seeds": " ".join(map(str, entry.seeds)),
    }
    if entry.eot:
        record["eot"] = entry.eot
    if entry.flags:
        record["flags"] = " | ".join([*entry.reasons(note=False), *entry.reasons(note=True)])
    if entry.contributors:
        record[INCLUDES] = f"images by {', '.join(map(str, entry.contributors))}"
    for column in table.columns:
        if column.better:
            record |= _metric(column.name, by_name[column.name])
    return record


def _metric(name: str, cell: BoardCell) -> dict[str, str | int | None]:
    number = cell.number
    if number is None:
        return {name: "failed" if cell.mark == "failed" else ""}
    found: dict[str, str | int | None] = {name: number.text}
    if number.low is not None and number.high is not None:
        found[f"{name} low"] = f"{number.low:.{number.digits}f}"
        found[f"{name} high"] = f"{number.high:.{number.digits}f}"
    if number.spread is not None:
        found[f"{name} sd"] = f"{number.spread:.{number.digits}f}"
    if number.seeds:
        found[f"{name} seeds"] = " ".join(map(str, number.seeds))
    return found
