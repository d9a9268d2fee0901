"""Boards are written where they changed, and plots drawn where their numbers did."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dmlbench.analysis.records import tidy
from dmlbench.report import drawing, plots
from dmlbench.report.board import Board
from dmlbench.report.render import boards
from tests.synthetic import FULL, model, write

Run = Callable[..., "subprocess.CompletedProcess[str]"]
CELLS = [*model(label="a"), *model(FULL | {"CA+": 30.0}, label="b")]


@pytest.fixture
def board() -> Board:
    (one,) = boards(tidy(CELLS), literature=False)
    return one


def test_a_plot_is_drawn_again_only_if_its_numbers_or_its_file_changed(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: plots.PLOTS[name] for name in ("terms", "eps", "ranks")}  # one that has numbers
    monkeypatch.setattr(plots, "PLOTS", few)
    first = drawing.draw([board], tmp_path, ("svg",))
    assert [one.fresh for one in first.pictures.values()] == [True]
    assert len(drawing.write(first, tmp_path)) == 1
    draw = drawing._draw
    monkeypatch.setattr(drawing, "_draw", None)  # nothing is drawn
    again = drawing.draw([board], tmp_path, ("svg",))
    assert not any(one.fresh for one in again.pictures.values())
    assert [one.files for one in again.pictures.values()] == [
        one.files for one in first.pictures.values()
    ]
    assert drawing.write(again, tmp_path) == []
    monkeypatch.setattr(drawing, "_draw", draw)
    (tmp_path / "plots" / "tiny-strict-terms.svg").write_text("edited")
    mended = drawing.draw([board], tmp_path, ("svg",)).pictures
    assert mended["tiny-strict-terms"].fresh
    assert mended["tiny-strict-terms"].files == first.pictures["tiny-strict-terms"].files
    (tmp_path / "plots" / drawing.STAMP).write_text("{")
    assert all(one.fresh for one in drawing.draw([board], tmp_path, ("svg",)).pictures.values())


def test_other_numbers_have_another_digest(board: Board) -> None:
    (other,) = boards(tidy([*model(label="a"), *model(label="b")]), literature=False)
    ours, theirs = ([task.digest for task in drawing._tasks(one)] for one in (board, other))
    assert not set(ours) & set(theirs)
    assert len(set(ours)) == len(ours)


def test_no_two_data_sets_have_the_same_files() -> None:
    """Also where their specs differ by nothing but characters that a file name does not have."""
    specs = ["a-b", "a_b", "a.b", "фото", *(f"folder:root={one}" for one in ("фото", "снимки"))]
    cells = [cell for one in specs for cell in model(dataset=one)]
    names = [
        name for board in boards(tidy(cells), literature=False) for name, *_ in drawing.named(board)
    ]
    assert len(names) == len(specs) * (len(plots.PLOTS) + len(plots.ACROSS))
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]+", name) for name in names)
    assert {"a-b-strict-terms", "a-b-suites"} <= set(names)  # a spec that is a file name keeps it


def test_the_command_draws_in_several_processes_and_writes_nothing_twice(
    dmlbench: Run, tmp_path: Path
) -> None:
    cells = model({"CA+": 20.0})  # few columns: one small plot
    (board,) = boards(tidy(cells), literature=False)
    write(tmp_path / "results" / "mine.csv", cells)
    first = dmlbench("leaderboard", "--against", "nothing")
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "leaderboards"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert f"{len(files) - 1} files written, 0 unchanged" in first.stderr  # the stamp is no board
    named = {tmp_path / line for line in first.stdout.split()}
    assert named == {path for path in files if path.name != drawing.STAMP}
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    again = dmlbench("leaderboard", "--against", "nothing")
    assert again.stdout == ""
    assert f"0 files written, {len(files) - 1} unchanged" in again.stderr
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files} == before
    alone = drawing._draw("tiny-strict-intervals", "intervals", board.tables[:1], ("svg",))
    assert alone is not None
    assert (folder / "plots" / "tiny-strict-intervals.svg").read_bytes() == alone.files["svg"]
