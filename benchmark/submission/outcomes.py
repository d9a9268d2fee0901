"""The outcomes of queries in a bundle, read without trust, and the numbers drawn from them anew."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dmlbench.attacks import moved_query
from dmlbench.common.errors import UserError
from dmlbench.common.lazy import np
from dmlbench.common.text import first_line
from dmlbench.metrics.bootstrap import (
    Estimate,
    bootstrap_mean,
    bootstrap_median,
    deciles,
    shares_above,
)
from dmlbench.metrics.distance import SLACK as BESIDE
from dmlbench.metrics.ers import score_per_query
from dmlbench.metrics.names import CLEAN_SUFFIX, ERS, OVER_STARTS
from dmlbench.storage.cell import PERCENT, UNBOUNDED, Cell
from dmlbench.sweep.tasks import CellTask, Combine

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Values = npt.NDArray[np.float64]
    Outcomes = dict[str, Values]

MOST_BYTES = 64  # of an outcome in the file, headers included
PLAIN = ("SNAPPY", "UNCOMPRESSED")  # neither makes much of little
SLACK = 1e-6  # relative: libraries of other versions add up in another order


def read_outcomes(content: bytes, cell: Cell, images: int) -> Outcomes:
    """The outcomes in a Parquet file: column -> (images,), NaN where there is none.

    Only columns of doubles are read, and none before its size is known to be that of the images.

    Raises:
        UserError: it is another file than the cell names, or none of outcomes.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    name = f"cells/{cell.id}.parquet"
    if hashlib.sha256(content).hexdigest() != cell.outcomes:
        raise UserError(f"{name} is not what its cell says (SHA-256 differs)")
    try:
        file = ParquetFile(io.BytesIO(content))
        about = file.metadata
        columns = [file.schema.column(number) for number in range(len(file.schema))]
        if about.num_rows != images or about.num_row_groups != 1 or not 1 <= len(columns) <= 64:
            raise ValueError(f"it needs one row group of {images} rows")
        for number, column in enumerate(columns):
            chunk = about.row_group(0).column(number)
            if column.physical_type != "DOUBLE" or column.max_repetition_level:
                raise ValueError(f"column {column.name} holds other than numbers")
            if chunk.num_values != images or chunk.compression not in PLAIN:
                raise ValueError(f"column {column.name} is not packed as pandas does")
            if chunk.total_uncompressed_size > MOST_BYTES * images + (1 << 16):
                raise ValueError(f"column {column.name} is too large")
        table = file.read(use_pandas_metadata=False)
        return {
            column.name: table.column(column.name).to_numpy().astype(np.float64)
            for column in columns
        }
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        said = first_line(error, "damaged")
        raise UserError(f"{name} is no file of outcomes: {said}") from None


def wrong_number(
    cell: Cell, task: CellTask, found: Outcomes, of: Mapping[str, Outcomes], asked: Values
) -> str:
    """The first number of a cell that does not follow from its outcomes; empty if all do.

    Args:
        cell: the cell.
        task: what it claims to be, planned anew.
        found: its outcomes.
        of: identity of a cell -> its outcomes, those that a score is drawn from among them.
        asked: (N,) true for the queries of its row.
    """
    name = cell.about.attack or "clean images"
    for column, values in found.items():
        low, high = bounds(task, column)
        if (wrong := values[(values < low - BESIDE) | (values > high + BESIDE)]).size:
            said = f"is {wrong[0]:g} for a query; it is within {low:g} and {high:g}"
            return f"{name}: {column} {said}"
        if np.isinf(values).any():
            return f"{name}: {column} is infinite for a query"
    if isinstance(task, Combine):
        sources = {column: of[one][column] for one, column in task.sources if one in of}
        if len(sources) < len({column for _, column in task.sources}):
            return f"{name}: the cells that it is drawn from are not all there"
        (score,) = cell.columns
        try:
            drawn = score_per_query(score, [(c, of[one][c]) for one, c in task.sources])
        except ValueError as error:
            return f"{name}: {error}"
        if set(found) != {score} or not np.allclose(found[score], drawn, SLACK, 0, equal_nan=True):
            return f"{name}: its outcomes do not follow from those of its attacks"
    for metric, column, estimate in _estimates(cell, task):
        if column not in found:
            return f"{name}: it has no outcomes of {column}"
        given = ~np.isnan(found[column])
        if task_is_attack(task) and (given != asked).any():
            return f"{name}: {column} has outcomes of other queries than its row attacks"
        if not given.any() or not _same(cell.metrics[metric], estimate(found[column])):
            return f"{name}: {metric} is {cell.metrics[metric].value:.6g}, its outcomes give " + (
                f"{estimate(found[column]).value:.6g}" if given.any() else "nothing"
            )
    return _wrong_finding(cell, name, found)


def task_is_attack(task: CellTask) -> bool:
    """True for the cell of an attack; false for clean images and for a score."""
    return not isinstance(task, Combine) and task.attack is not None


def bounds(task: CellTask, column: str) -> tuple[float, float]:
    """The least and the largest outcome that a query can have in a column, clean or attacked.

    A column that the task does not have is unbounded here; ``sample`` refuses it. So is the ERS of
    a query, which may be above 100: it must be the one that its attacks give.
    """
    if isinstance(task, Combine):
        return UNBOUNDED if column == ERS else PERCENT
    if task.attack is None:
        return PERCENT
    columns = (*task.attack.columns, *moved_query.columns_of(type(task.attack)))
    within = {one.name: one.within(task.cell.about.distance) for one in columns}
    return within.get(column.removesuffix(CLEAN_SUFFIX), UNBOUNDED)


def _estimates(
    cell: Cell, task: CellTask
) -> list[tuple[str, str, Callable[[npt.ArrayLike], Estimate]]]:
    """(metric, column of outcomes, statistic) of each number that is one of the outcomes."""
    medians = {}
    if not isinstance(task, Combine) and task.attack is not None:
        medians = {one.median: one.name for one in task.attack.columns if one.median}
    return [
        (
            metric,
            medians.get(metric, metric),
            bootstrap_median if metric in medians else bootstrap_mean,
        )
        for metric in cell.columns
        if metric not in OVER_STARTS
    ]


def _same(one: Estimate, other: Estimate) -> bool:
    pairs = ((one.value, other.value), (one.low, other.low), (one.high, other.high))
    return one.n == other.n and all(
        a is not None and b is not None and math.isclose(a, b, rel_tol=SLACK, abs_tol=SLACK)
        for a, b in pairs
    )


def _wrong_finding(cell: Cell, name: str, found: Outcomes) -> str:
    """A finding that tables show and that does not follow from the outcomes; empty if none."""
    shown: dict[str, Any] = cell.findings
    kinds: tuple[tuple[str, str, str, Callable[[Values], Any]], ...] = (
        ("deciles", "deciles", "", deciles),
        ("curves", "curve", "", shares_above),
        ("clean", "clean value", CLEAN_SUFFIX, np.nanmean),
    )
    for key, what, suffix, statistic in kinds:
        for column, claimed in shown.get(key, {}).items():
            if column + suffix not in found:
                return f"{name}: it has no outcomes of {column + suffix}, and the {what} of it"
            own = np.asarray(statistic(found[column + suffix]), dtype=np.float64)
            a = np.asarray(claimed, dtype=np.float64)
            if a.shape != own.shape or not np.allclose(a, own, SLACK, SLACK):
                return f"{name}: the {what} of {column} does not follow from its outcomes"
    return ""
