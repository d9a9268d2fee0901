"""CSV files of results: written from the cells of a store, and read back as typed records.

results.csv          tidy: one row for each cell and metric
wide.csv             one row for each model, one column for each metric
seeds.csv            the same with mean, deviation and interval over seeds
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from dmlbench.analysis import records, seeds
from dmlbench.analysis.records import COLLAPSE, ROW, Record
from dmlbench.attacks import moved_query
from dmlbench.attacks.base import ATTACKS, Column
from dmlbench.common.errors import UserError
from dmlbench.common.files import open_file, read_file, write_atomically, write_if_changed
from dmlbench.common.hashing import file_sha256
from dmlbench.common.numbers import LARGEST
from dmlbench.common.spreadsheet import guarded, plain
from dmlbench.common.text import printable
from dmlbench.core.flags import read_flags
from dmlbench.core.naming import DATASET_NAME, parameters, with_plain_paths
from dmlbench.core.protocol import SUITES
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.metrics.distance import METRICS
from dmlbench.storage import findings
from dmlbench.storage.cell import Cell, implausible
from dmlbench.storage.store import Store

BOARD = ("dataset", "suite", "rank", "model")  # columns that the CSV of a board begins with
OTHERS = ("wide.csv", "seeds.csv")  # exports that are not tidy
EXPORTED = ".exported"  # holds the SHA-256 of the results.csv that was exported last
LOCK, LOCK_SECONDS = ".exported.lock", 300  # longer than any other run takes for its export
_LENGTH, _WHOLE = r"\d{1,19}(/0*[1-9]\d{0,18}|(\.\d{1,30})?(e[+-]?\d{1,2})?)", r"\d{1,19}"
_NUMBERS_OF_ATTACKS = {"eps": _LENGTH, "alpha": _LENGTH, "steps": _WHOLE, "budget": _WHOLE}
LONGEST = 1 << 26  # characters of a text in a CSV: cells of older versions have long errors


def export(store: Store) -> tuple[Path, Path]:
    """Write results.csv, wide.csv and seeds.csv; returns the paths of the first two.

    If several runs share the folder, one exports after the other, so the last one sees the cells of
    all. Where no lock can be had, as on a read-only disk, none is waited for.

    A results.csv that was not exported here may hold rows of which the folder has no cell, such as
    those of a CSV that a user copied here under that name. They are kept in a CSV of another name,
    and a warning says so. Rows exported from here are removed with their cell: deleting a cell
    deletes its rows.

    Raises:
        UserError: the results.csv that is there cannot be read, or a file cannot be written.
    """
    from filelock import FileLock

    tidy, wide = store.root / "results.csv", store.root / "wide.csv"
    with ExitStack() as stack:
        with suppress(OSError, NotImplementedError):  # a read-only disk; one without locks
            stack.enter_context(FileLock(store.root / LOCK, timeout=LOCK_SECONDS))
        _keep_foreign(tidy, store)
        cells = store.cells()
        write(tidy, records.TIDY_COLUMNS, records.tidy(cells))
        write_if_changed(store.root / EXPORTED, file_sha256(tidy).encode())
        rows = records.wide(cells)
        write(wide, records.wide_columns(rows), [row.record() for row in rows])
        write(store.root / "seeds.csv", seeds.columns(rows), seeds.over_seeds(rows))
    return tidy, wide


def _keep_foreign(tidy: Path, store: Store) -> None:
    """Write the rows of ``tidy`` that no cell of the store has to a CSV of another name.

    A file that was exported here has none. One that is no CSV with a column ``cell`` is kept whole,
    under a name that nothing reads.
    """
    content, foreign = _foreign(tidy, store)
    kept = tidy.with_name(f"results-{hashlib.sha256(content).hexdigest()[:8]}.csv")
    if foreign is None:
        kept = kept.with_suffix(".csv.bak")
        write_atomically(kept, content)
        warnings.warn(f"{tidy} is no CSV of results: it is kept as {kept}", stacklevel=3)
    elif foreign:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(foreign)
        write_atomically(kept, text.getvalue().encode())
        warnings.warn(
            f"{tidy} has rows of no cell in this folder ({len(foreign) - 1}): they are kept in "
            f"{kept}, which boards read as well",
            stacklevel=3,
        )


def has_foreign(store: Store) -> bool:
    """True if the results.csv of the folder has rows of no cell in it, or is no CSV of results.

    Raises:
        UserError: it cannot be read.
    """
    return _foreign(store.root / "results.csv", store)[1] != []


def _foreign(tidy: Path, store: Store) -> tuple[bytes, list[list[str]] | None]:
    """The content of ``tidy``, and its rows that no cell of the store has, below the names.

    The rows are empty if there are none, and None if it is no CSV with a column ``cell``.
    """
    try:
        content = read_file(tidy)
        exported = tidy.with_name(EXPORTED)
        last = read_file(exported) if exported.exists() else b""
    except FileNotFoundError:
        return b"", []
    except OSError as error:
        raise UserError(f"{error.filename or tidy} cannot be read: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest().encode() == last:
        return content, []
    try:
        csv.field_size_limit(LONGEST)
        names, *rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        place, known = names.index("cell"), store.ids()
        foreign = [row for row in rows if row and row[place] not in known]
    except (ValueError, IndexError, csv.Error):
        return content, None
    return content, [names, *foreign] if foreign else []


def write(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV that differs; texts that a spreadsheet would take for a formula are guarded."""
    text = io.StringIO()
    names = list(columns)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_written, names))
    writer.writerows([_written(row.get(name, "")) for name in names] for row in rows)
    write_if_changed(path, text.getvalue().encode())


def _written(value: Any) -> Any:
    if isinstance(value, tuple):
        return series_text(value)
    return guarded(printable(value)) if isinstance(value, str) else value


def series_text(values: tuple[Any, ...]) -> str:
    """Deciles as ``1.0 2.5``, and the points of a curve as ``0.0:80.0 2.0:30.0``."""
    return " ".join(
        ":".join(map(repr, value)) if isinstance(value, tuple) else repr(value) for value in values
    )


def read_folder(folder: Path) -> list[Record]:
    """The records of every tidy CSV in ``folder``, file by file, sorted by name.

    Raises:
        UserError: ``folder`` is a file, or a CSV in it is not what ``dmlbench run`` writes.
    """
    return [record for path in tidy_files(folder) for record in read_tidy(path)]


def tidy_files(folder: Path) -> list[Path]:
    """The CSVs in ``folder`` that are to be tidy, sorted by name; UserError if it is a file.

    Hidden ones are left out: editors and other systems put files of their own beside a CSV. So are
    boards, which may be written into the same folder.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--results {folder} is not a folder")
    found = (path for path in folder.glob("[!.]*.csv") if path.name not in OTHERS)
    return sorted(path for path in found if not _is_board(path))


def _is_board(path: Path) -> bool:
    begins = ",".join(BOARD).encode() + b","
    try:
        with open_file(path) as file:
            return file.read(len(begins)) == begins
    except OSError:  # ``read_tidy`` says why
        return False


def stored_records(store: Store, cells: Iterable[Cell]) -> list[Record]:
    """The records of ``cells``, and those of the CSVs of which the folder has no cell.

    A cell that is damaged, or of weights that were replaced, has no record, also not the one that
    an earlier export may have left in a CSV.

    Args:
        store: the results folder.
        cells: those of its cells that count (``Store.cells``).
    """
    known = store.ids()
    others = (record for record in read_folder(store.root) if record["cell"] not in known)
    return [*records.tidy(cells), *others]


def read_tidy(path: Path) -> list[Record]:
    """The records of a tidy CSV. Unknown columns are ignored.

    Raises:
        UserError: it cannot be read, lacks a column, or has an impossible row.
    """
    csv.field_size_limit(LONGEST)
    try:
        with io.TextIOWrapper(open_file(path), "utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            there = reader.fieldnames or ()
            missing = [name for name in READERS if name not in there and name not in LATER]
            if missing:
                few = ", ".join(missing[:4]) + ", ..." * (len(missing) > 4)
                raise UserError(
                    f"{path} lacks the columns {few}: a CSV in a results folder has one row "
                    "per metric, as 'dmlbench run' writes results.csv; move others elsewhere"
                )
            return [_record(raw, f"{path} line {reader.line_num}") for raw in reader]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a CSV: {error}") from None


def _record(raw: Mapping[str | Any, Any], place: str) -> Record:
    """A row of the file with typed values; ``place`` is for error messages."""
    if None in raw or None in raw.values():
        raise UserError(f"{place} has {'more' if None in raw else 'fewer'} cells than the header")
    record: Record = {}
    for name, read in _READ.items():
        try:
            record[name] = read(raw.get(name, ""))
        except ValueError as error:
            wrong = f"{name} is {raw.get(name, '')[:200]!r}, which is {error}"
            raise UserError(f"{place}: {wrong}; restore the file, or leave the row out") from None
    wrong = _problem(record)
    if wrong:
        raise UserError(f"{place}: {wrong}; restore the file, or leave the row out")
    return record


def _problem(record: Record) -> str:
    """The reason why a record cannot be right; empty if it can."""
    if record["status"] != "ok":
        return "" if record["value"] is None else "a failed cell has a value"
    name, estimate = (
        record["metric"],
        Estimate(*(record[key] for key in ("value", "low", "high", "n"))),
    )
    if not name or estimate.value is None or estimate.n is None or not record["better"]:
        return "a cell that is ok needs metric, value, n and better"
    if record["curve"] and not {"eps", "budget"} & parameters(record["attack_resolved"]).keys():
        return "a curve needs the eps or the budget of its attack in attack_resolved"
    unknown = Column(name, record["unit"], record["better"])  # bounded by its unit alone
    known = _columns().get((record["attack"].partition(":")[0], name), unknown)
    return implausible(name, estimate, known.within(record["distance"]))


@cache
def _columns() -> dict[tuple[str, str], Column]:
    """(attack, heading) -> the column, of every registered attack."""
    return {
        (attack.card.name, one.name): one
        for attack in ATTACKS
        for one in (*attack.columns, *moved_query.columns_of(attack))
    }


def _text(text: str) -> str:
    return text


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("empty")
    return text


def _attack(text: str) -> str:
    """The spec of an attack; boards and plots take numbers out of it."""
    for key, value in parameters(text).items():
        wanted = _NUMBERS_OF_ATTACKS.get(key)
        if wanted and not re.fullmatch(wanted, value, re.ASCII):
            raise ValueError(f"no spec of an attack: {key}={value[:50]} is no number")
    return text


def _dataset(text: str) -> str:
    if not re.fullmatch(DATASET_NAME, text.partition(":")[0]):
        raise ValueError("not the name of a data set")
    return with_plain_paths(text)  # as a cell of an early version is read


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError("not a number") from None
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def _count(text: str) -> int:
    short = text.isascii() and text.isdecimal() and len(text) <= len(str(LARGEST))
    if not short or int(text) > LARGEST:
        raise ValueError("not a whole number that is used here")
    return int(text)


def _deciles(text: str) -> tuple[float, ...]:
    numbers = tuple(map(_number, text.split()))
    if wrong := findings.wrong_deciles(numbers):
        raise ValueError(wrong)
    return numbers


def _curve(text: str) -> tuple[tuple[float, float], ...]:
    points = [point.partition(":") for point in text.split()]
    found = tuple((_number(x), _number(share)) for x, _, share in points)
    if wrong := findings.wrong_curve(found):
        raise ValueError(wrong)
    return found


def _versions(text: str) -> str:
    for part in text.split("."):
        _count(part)
    return text


def _flags(text: str) -> str:
    read_flags(text)
    return text


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"not one of {', '.join(word or 'nothing' for word in words)}")
        return text

    return read


def _maybe(read: Callable[[str], Any], absent: Any = None) -> Callable[[str], Any]:
    return lambda text: read(text) if text else absent


def _truth(text: str) -> bool:
    return _one_of("True", "False")(text) == "True"


READERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(ROW, _text),
    **dict.fromkeys(("model", "label", "precision"), _filled),
    "dataset": _dataset,
    "distance": _one_of(*METRICS),
    "suite": _one_of(*SUITES, ""),
    "training_cost": _count,
    "seed": _count,
    **dict.fromkeys(("attack", "attack_resolved"), _attack),
    "metric": _text,
    **dict.fromkeys(("value", "low", "high", "clean"), _maybe(_number)),
    "n": _maybe(_count),
    "deciles": _deciles,
    "curve": _curve,
    **dict.fromkeys(COLLAPSE, _maybe(_number, "")),
    "collapsed": _maybe(_truth, ""),
    "unit": _text,
    "better": _one_of("higher", "lower", ""),
    "status": _one_of("ok", "failed"),
    **dict.fromkeys(("error", "data", "checkpoint_sha256", "git", "device", "torch"), _text),
    **dict.fromkeys(("cell", "dmlbench", "started"), _filled),
    "versions": _versions,
    "flags": _flags,
}
"""Column -> parser of its text, which raises ValueError (``not a number``). Others are ignored."""


def _remembered(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """The parser of a column; most columns hold few different texts, which are read once."""
    return lru_cache(maxsize=1024)(lambda text: read(printable(plain(text))))


_READ = {name: _remembered(read) for name, read in READERS.items()}

LATER = ("curve", "flags", "eot")
"""Columns that older CSVs lack; they are empty then."""
