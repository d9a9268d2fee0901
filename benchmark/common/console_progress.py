"""Progress on a console: live bars on a terminal and in a notebook, plain lines in a pipe."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from dmlbench.common.progress import Bar, Tally, duration

LINE_SECONDS = 15.0  # between two plain lines of one task
FIRST_SECONDS = 5.0  # until its first line that says how much time is left


class LiveReporter:
    """Shows a table of the run and a bar for each running task, inside ``with``."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._table: Table | None = None
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=console,
        )
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=4, transient=True
        )

    def __enter__(self) -> LiveReporter:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _render(self) -> RenderableType:
        return Group(self._table, self._progress) if self._table else self._progress

    def tally(self, tally: Tally) -> None:
        """Replace the table of the run."""
        table = Table(box=box.SIMPLE_HEAD)
        for name in ("cells", "done", "failed", "to do", "tasks running", "ETA"):
            table.add_column(name, justify="right")
        failed = Text(str(tally.failed), style="red" if tally.failed else "")
        to_do = tally.total - tally.done - tally.failed
        row = [tally.total, tally.done, failed, to_do, tally.running, tally.left]
        table.add_row(*[one if isinstance(one, Text) else str(one) for one in row])
        self._table = table

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Bar]:
        """Show a live bar; when the task ends, a line takes its place."""
        progress, begun = self._progress, time.monotonic()
        number = progress.add_task(title, total=total, completed=done, note="")

        class LiveBar:
            note = ""

            def advance(self, amount: float, note: str | None = None) -> None:
                progress.update(number, advance=amount)
                if note is not None:
                    self.note = note
                    progress.update(number, note=note)

        bar = LiveBar()
        try:
            yield bar
            self.say(_done(title, begun, bar.note))
        finally:
            progress.remove_task(number)

    def say(self, message: str) -> None:
        """Print a line above the bars."""
        self._console.print(message, highlight=False, markup=False)

    def warn(self, message: str) -> None:
        """Print a yellow line above the bars."""
        self._console.print(f"warning: {message}", style="yellow", highlight=False, markup=False)


class PlainReporter:
    """Prints a line when a task begins and ends, and every 15 seconds between.

    The first of these comes after 5 seconds, and a line more as soon as there is a note.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told = time.monotonic()

    def __enter__(self) -> PlainReporter:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Bar]:
        """Print lines with the share that is done and the time left."""
        say, begun, before = self.say, time.monotonic(), done

        class Lines:
            done = float(before)
            next = begun + FIRST_SECONDS
            note = ""

            def advance(self, amount: float, note: str | None = None) -> None:
                self.done += amount
                first = bool(note) and not self.note
                self.note = self.note if note is None else note
                now = time.monotonic()
                if (now < self.next and not first) or not before < self.done < total:
                    return
                self.next = now + LINE_SECONDS
                left = (now - begun) / (self.done - before) * (total - self.done)
                whole = int(self.done + 1e-6)  # parts add up to a little less
                say(f"{title}: {whole}/{total}, {duration(left)} left {self.note}".rstrip())

        say(f"{title} ...")
        lines = Lines()
        yield lines
        say(_done(title, begun, lines.note))

    def tally(self, tally: Tally) -> None:
        """Print a line about the run every 15 seconds."""
        now = time.monotonic()
        if now - self._told >= LINE_SECONDS:
            self._told = now
            self.say(
                f"cells: {tally.done} of {tally.total} done, {tally.failed} failed; "
                f"{tally.running} tasks running, ETA {tally.left}"
            )

    def say(self, message: str) -> None:
        """Print a line."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        """Print a line that warns."""
        self.say(f"warning: {message}")


def _done(title: str, begun: float, note: str) -> str:
    return f"{title}: done in {duration(time.monotonic() - begun)}  {note}".rstrip()


def reporter_for(console: Console) -> LiveReporter | PlainReporter:
    """Live bars on a terminal and in a notebook that has ipywidgets, plain lines elsewhere."""
    notebook = console.is_jupyter and find_spec("ipywidgets") is not None
    return LiveReporter(console) if console.is_terminal or notebook else PlainReporter(console)
