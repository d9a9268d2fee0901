"""Progress: bars on a terminal and in a notebook, lines elsewhere, and rich only where needed."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from dmlbench.common import console_progress
from dmlbench.common.console_progress import LiveReporter, PlainReporter, reporter_for
from dmlbench.common.progress import Tally


def work(reporter: LiveReporter | PlainReporter) -> None:
    """Three units of a task, in a run of four cells."""
    with reporter, reporter.task("training hm", 3) as bar:
        reporter.tally(Tally(4, 1, 0, 1, 90.0))
        bar.advance(2, "loss 0.2")
        reporter.warn("the disk is nearly full")
        bar.advance(1)


def test_the_interface_imports_no_rich() -> None:
    code = "import sys, dmlbench.common.progress; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_pipe_gets_lines() -> None:
    out = io.StringIO()
    reporter = reporter_for(Console(file=out))
    assert isinstance(reporter, PlainReporter)
    work(reporter)
    first, noted, warning, last = out.getvalue().splitlines()
    assert (first, warning) == ("training hm ...", "warning: the disk is nearly full")
    assert noted.startswith("training hm: 2/3, ")  # the first note does not wait
    assert noted.endswith(" left loss 0.2")
    assert last.startswith("training hm: done in")
    assert last.endswith("  loss 0.2")


def test_a_name_is_no_markup_on_a_terminal() -> None:
    out = io.StringIO()
    reporter = reporter_for(Console(file=out, force_terminal=True, width=100))
    with reporter, reporter.task("ca+ on a[/b] [red]c", 3) as bar:
        bar.advance(1, "[/x]")
        assert isinstance(reporter, LiveReporter)
        reporter._live.refresh()
    assert "ca+ on a[/b] [red]c" in out.getvalue()
    assert "[/x]" in out.getvalue()


def test_lines_come_after_five_seconds_and_then_every_fifteen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    with PlainReporter(Console(file=out)) as reporter, reporter.task("embed", 100) as bar:
        for second in range(1, 50):
            clock[0] = second
            bar.advance(2)
    told = [line.split()[1] for line in out.getvalue().splitlines()[1:-1]]
    assert told == ["10/100,", "40/100,", "70/100,"]


def test_the_time_left_of_a_resumed_task_counts_only_what_it_does_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    with PlainReporter(Console(file=out)) as reporter, reporter.task("train", 100, 40) as bar:
        clock[0] = 8
        bar.advance(0)  # nothing is done yet, so no speed is known
        clock[0] = 10
        bar.advance(1)
        clock[0] = 60
        bar.advance(9)
    told = out.getvalue().splitlines()[1:-1]
    assert told == ["train: 41/100, 10 min left", "train: 50/100, 5 min left"]


def test_the_bar_of_a_resumed_task_begins_where_the_last_run_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reporter = reporter_for(Console(file=io.StringIO(), force_terminal=True, width=100))
    assert isinstance(reporter, LiveReporter)
    clock = [0.0]
    monkeypatch.setattr(reporter._progress, "get_time", lambda: clock[0])
    with reporter, reporter.task("train", 100, 40) as bar:
        for clock[0] in (0.0, 10.0, 20.0):
            bar.advance(1)
        (task,) = reporter._progress.tasks
        assert task.completed == 43
        assert task.time_remaining == 570  # 57 units of 10 s


def test_a_terminal_gets_bars() -> None:
    out = io.StringIO()
    reporter = reporter_for(Console(file=out, force_terminal=True, width=100))
    assert isinstance(reporter, LiveReporter)
    work(reporter)
    shown = out.getvalue()
    assert "\x1b[" in shown  # the bars are drawn over
    assert "warning: the disk is nearly full" in shown
    assert "training hm: done in" in shown


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A notebook's display, which keeps what is shown inside its widget."""
    shown: list[str] = []
    inside = []

    class Output:
        def __enter__(self) -> None:
            inside.append(self)

        def __exit__(self, *_: object) -> None:
            inside.pop()

        def clear_output(self, wait: bool) -> None: ...

        def close(self) -> None:
            shown.append("closed")

    def display(what: Any) -> None:
        if inside:
            shown.append(what.text)

    widgets, ipython, displays = map(ModuleType, ("ipywidgets", "IPython", "IPython.display"))
    vars(widgets).update(Output=Output)
    vars(displays).update(display=display)
    vars(ipython).update(display=displays)
    for module in (widgets, ipython, displays):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(console_progress, "find_spec", lambda name: sys.modules.get(name))
    return shown


def test_a_notebook_gets_live_bars(notebook: list[str]) -> None:
    reporter = reporter_for(Console(force_jupyter=True, width=100))
    assert isinstance(reporter, LiveReporter)
    with reporter, reporter.task("training hm", 3) as bar:
        bar.advance(2)
        deadline = time.monotonic() + 20
        while not notebook and time.monotonic() < deadline:  # drawn by a thread, 4 times a second
            time.sleep(0.02)
    assert "training hm" in notebook[0]
    assert "2/3" in notebook[0]
    assert notebook[-1] == "closed"


def test_a_notebook_without_widgets_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_progress, "find_spec", lambda name: None)
    assert isinstance(reporter_for(Console(force_jupyter=True)), PlainReporter)
