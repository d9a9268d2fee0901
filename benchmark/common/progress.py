"""Progress of long work: live bars with an ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

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

LINE_SECONDS = 15.0  # at least, between two plain lines about one task


@dataclass(frozen=True)
class Tally:
    """The state of a run, in numbers.

    Attributes:
        total: number of cells.
        done: number of cells that have been measured.
        failed: number of cells that failed, or whose model could not be trained.
        running: number of tasks in progress.
        seconds: estimated time until the end; None if no similar task has been timed before.
    """

    total: int
    done: int
    failed: int
    running: int
    seconds: float | None

    @property
    def left(self) -> str:
        """The estimated time until the end as text; ``?`` if there is no estimate."""
        return "?" if self.seconds is None else duration(self.seconds)


class Bar(Protocol):
    """The progress of one task."""

    def advance(self, amount: int, note: str = "") -> None:
        """Report ``amount`` more units as done; ``note`` is shown beside the bar, e.g. the loss."""
        ...


class Reporter(Protocol):
    """The interface by which long work reports its progress and its messages."""

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Bar]:
        """Show a bar of ``total`` units until the ``with`` block ends."""
        yield  # type: ignore[misc]  # a protocol has no body

    def tally(self, tally: Tally) -> None:
        """Report the state of the run after every change; worker processes never call it."""
        return None

    def say(self, message: str) -> None:
        """Print a line."""
        ...

    def warn(self, message: str) -> None:
        """Print a warning."""
        ...


class LiveReporter:
    """Reporter for a terminal: a table of the run, and a bar for each task in progress."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._table: Table | None = None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
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
        """Replace the table."""
        table = Table(box=box.SIMPLE_HEAD)
        for name in ("cells", "done", "failed", "to do", "tasks running", "ETA"):
            table.add_column(name, justify="right")
        failed = Text(str(tally.failed), style="red" if tally.failed else "")
        to_do = tally.total - tally.done - tally.failed
        row = [tally.total, tally.done, failed, to_do, tally.running, tally.left]
        table.add_row(*[value if isinstance(value, Text) else str(value) for value in row])
        self._table = table

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Bar]:
        """Show a live bar; at its end one line with the time taken replaces it."""
        progress, number = self._progress, self._progress.add_task(title, total=total, note="")
        begun = time.monotonic()

        class LiveBar:
            def advance(self, amount: int, note: str = "") -> None:
                progress.update(number, advance=amount, note=note)

        try:
            yield LiveBar()
            self.say(f"{title}: done in {duration(time.monotonic() - begun)}")
        finally:
            progress.remove_task(number)

    def say(self, message: str) -> None:
        """Print a line above the bars."""
        self._console.print(message, highlight=False, markup=False)

    def warn(self, message: str) -> None:
        """Print a yellow line above the bars."""
        self._console.print(f"warning: {message}", style="yellow", highlight=False, markup=False)


class PlainReporter:
    """Reporter for files and pipes: a line when a task begins and ends, and every 15 seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told = time.monotonic()

    def __enter__(self) -> PlainReporter:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Bar]:
        """Print lines with the units done and the time left."""
        say, begun = self.say, time.monotonic()

        class Lines:
            done = 0
            last = begun

            def advance(self, amount: int, note: str = "") -> None:
                self.done += amount
                now = time.monotonic()
                if now - self.last < LINE_SECONDS or self.done >= total:
                    return
                self.last = now
                left = (now - begun) / self.done * (total - self.done)
                say(f"{title}: {self.done}/{total}, {duration(left)} left {note}".rstrip())

        say(f"{title} ...")
        yield Lines()
        say(f"{title}: done in {duration(time.monotonic() - begun)}")

    def tally(self, tally: Tally) -> None:
        """Print the state at most every 15 seconds."""
        now = time.monotonic()
        if now - self._told >= LINE_SECONDS:
            self._told = now
            self.say(
                f"cells: {tally.done} of {tally.total} done, {tally.failed} failed; "
                f"{tally.running} tasks running, ETA {tally.left}"
            )

    def say(self, message: str) -> None:
        """Print a plain line."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        """Print a plain line that begins with ``warning:``."""
        self.say(f"warning: {message}")


class QuietReporter(Reporter):
    """Reporter of a process that prints nothing, because another process reports."""

    def __enter__(self) -> QuietReporter:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Bar]:
        """Show no bar."""

        class Nothing:
            def advance(self, amount: int, note: str = "") -> None: ...

        yield Nothing()

    def tally(self, tally: Tally) -> None:
        """Do nothing."""

    def say(self, message: str) -> None:
        """Do nothing."""

    def warn(self, message: str) -> None:
        """Do nothing."""


def duration(seconds: float) -> str:
    """Write a time span for people: ``8.3 s``, ``4 min``, ``2 h 05 min``, ``3 d 4 h``."""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def reporter_for(console: Console) -> LiveReporter | PlainReporter:
    """Choose the reporter: live bars on a terminal, plain lines elsewhere."""
    return LiveReporter(console) if console.is_terminal else PlainReporter(console)
