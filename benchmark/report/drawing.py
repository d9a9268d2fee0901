"""The files of plots: drawn in several processes, and only those whose table has changed.

``plots/.drawn.json`` in the folder of boards says what each file was drawn from. A plot is drawn
again if its numbers, the code that draws it or matplotlib are others, or if a file is not the one
that was written.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import resources
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dmlbench.common.files import read_file, write_atomically, write_json
from dmlbench.compute.device import processors
from dmlbench.report.board import Board, Table, base
from dmlbench.report.columns import curves, ranks

STAMP = ".drawn.json"
FEW = 8  # plots that are drawn sooner than a second process starts
CODE = ("analysis", "core", "metrics", "report")  # folders whose code decides the bytes of a plot


@dataclass(frozen=True)
class Picture:
    """A plot as files.

    Attributes:
        name: of its files, without the ending.
        title: the title above it.
        width: in inches.
        files: ``svg``, ``pdf``, ``png`` -> content.
        fresh: True if it was drawn now, false if its files were there.
    """

    name: str
    title: str
    width: float
    files: dict[str, bytes]
    fresh: bool


@dataclass(frozen=True)
class Task:
    """A plot to draw: its name in ``PLOTS`` or ``ACROSS``, its tables, and a digest of all that it
    depends on.
    """

    name: str
    plot: str
    tables: tuple[Table, ...]
    digest: str


@dataclass(frozen=True)
class Drawn:
    """The plots of some boards.

    Attributes:
        tasks: what there was to draw.
        pictures: name of the files -> plot, in the order of the boards; tasks of tables that lack
            the numbers have none.
    """

    tasks: tuple[Task, ...]
    pictures: dict[str, Picture]


def draw(boards: Sequence[Board], folder: Path, kinds: Sequence[str]) -> Drawn:
    """The plots of ``boards``, taken from their files where those are up to date.

    Args:
        boards: whose tables are drawn.
        folder: of boards; what its ``plots/`` holds is taken where it is up to date.
        kinds: the formats that are needed, ``svg`` among them.
    """
    tasks = [task for board in boards for task in _tasks(board)]
    known = _read(folder / "plots")
    found = {task.name: _stored(task, known, folder / "plots", kinds) for task in tasks}
    missing = [task for task in tasks if found[task.name] is False]
    found |= zip([task.name for task in missing], _drawn(missing, tuple(kinds)), strict=True)
    made = {name: one for name, one in found.items() if isinstance(one, Picture)}
    return Drawn(tuple(tasks), made)


def write(drawn: Drawn, folder: Path) -> list[Path]:
    """Write the pictures that are fresh, and what they were drawn from; returns their paths."""
    place = folder / "plots"
    paths = []
    for one in drawn.pictures.values():
        for kind, content in one.files.items() if one.fresh else ():
            paths.append(place / f"{one.name}.{kind}")
            write_atomically(paths[-1], content)
    before = _read(place)
    stamps = dict(before)
    for task in drawn.tasks:
        picture = drawn.pictures.get(task.name)
        stamps[task.name] = {"of": task.digest} | (_stamp(picture) if picture else {})
    if stamps != before:
        write_json(place / STAMP, stamps)
    return paths


def named(board: Board) -> Iterator[tuple[str, str, tuple[Table, ...]]]:
    """Each plot that a board may have: the name of its files, its name in ``PLOTS`` or
    ``ACROSS``, its tables.
    """
    from dmlbench.report.plots import ACROSS, PLOTS

    # published rows of a related data set are drawn on its own board
    own = [table for table in board.tables if base(table.dataset) == board.name]
    for dataset in dict.fromkeys(table.dataset for table in own):
        of = tuple(table for table in own if table.dataset == dataset)
        yield from ((f"{file_stem(dataset)}-{plot}", plot, of) for plot in ACROSS)
    for table in own:
        stem = file_stem(table.dataset, table.suite)
        yield from ((f"{stem}-{plot}", plot, (table,)) for plot in PLOTS)


def file_stem(dataset: str, suite: str = "") -> str:
    """The start of the names of files: the words of a spec, and its hash if they are not all of it.

    So no two data sets have the same files, nor the same ids on the page.
    """
    text = f"{dataset} {suite}".strip()
    words = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")
    if words == text.replace(" ", "-"):
        return words
    return f"{words}-{_sha256(text.encode())[:8]}".lstrip("-")


def _tasks(board: Board) -> list[Task]:
    texts = {id(table): repr(table) for table in board.tables}
    found = []
    for name, plot, tables in named(board):
        words = [plot, _code(), *(texts[id(table)] for table in tables)]
        found.append(Task(name, plot, tables, _sha256(" ".join(words).encode())))
    return found


@cache
def _code() -> str:
    """Digest of the code, the library and the attacks' columns that decide what a plot shows."""
    import matplotlib

    package = resources.files("dmlbench")
    files = [
        file.read_bytes()
        for name in CODE
        for file in sorted((package / name).iterdir(), key=lambda one: one.name)
        if file.name.endswith(".py")
    ]
    rest = f"{matplotlib.__version__} {curves()} {ranks()}"
    return _sha256(b"\0".join([rest.encode(), *files]))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _stamp(picture: Picture) -> dict[str, Any]:
    digests = {kind: _sha256(content) for kind, content in picture.files.items()}
    return {"title": picture.title, "width": picture.width, "files": digests}


def _read(place: Path) -> dict[str, Any]:
    """The digests of the stored plots, by name; none if their file cannot be read."""
    try:
        stamps = json.loads(read_file(place / STAMP))
    except (OSError, ValueError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _stored(
    task: Task, known: dict[str, Any], place: Path, kinds: Sequence[str]
) -> Picture | bool | None:
    """The stored plot; None if the table has no such plot, False if it is to be drawn."""
    stamp = known.get(task.name)
    if not isinstance(stamp, dict) or stamp.get("of") != task.digest:
        return False
    if "files" not in stamp:
        return None
    try:
        files = {kind: read_file(place / f"{task.name}.{kind}") for kind in kinds}
    except OSError:
        return False
    if any(_sha256(content) != stamp["files"].get(kind) for kind, content in files.items()):
        return False
    return Picture(task.name, stamp["title"], stamp["width"], files, fresh=False)


def _drawn(tasks: Sequence[Task], kinds: tuple[str, ...]) -> list[Picture | None]:
    """Draw the tasks, in several processes where there are many."""
    jobs = [(task.name, task.plot, task.tables, kinds) for task in tasks]
    workers = min(len(tasks) // FEW, processors())
    if workers < 2:
        return [_draw(*job) for job in jobs]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_draw, *zip(*jobs, strict=True)))


def _draw(name: str, plot: str, tables: Sequence[Table], kinds: Sequence[str]) -> Picture | None:
    from dmlbench.report import style
    from dmlbench.report.plots import figure_of

    figure = figure_of(plot, tables)
    if figure is None:
        return None
    files = {kind: style.save(figure, kind) for kind in style.FORMATS if kind in kinds}
    return Picture(name, str(figure.get_suptitle()), figure.get_figwidth(), files, fresh=True)
