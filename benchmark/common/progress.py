"""Progress that suits where it goes: live bars with an ETA on a terminal, plain lines in a pipe."""

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

LINE_SECONDS = 15.0  # between two plain lines of one task


@dataclass(frozen=True)
class Tally:
    """How far a run is.

    Attributes:
        total: cells of the run.
        done: cells with a number.
        failed: cells that have failed, or whose model has.
        running: tasks that are being done now.
        seconds: how long the rest will take; None where nothing like it was done before.
    """

    total: int
    done: int
    failed: int
    running: int
    seconds: float | None

    @property
    def left(self) -> str:
        """The time left, in words."""
        return "?" if self.seconds is None else duration(self.seconds)


class Bar(Protocol):
    """One bar."""

    def advance(self, amount: int, note: str = "") -> None:
        """``amount`` more is done; ``note`` says how it goes, e.g. the loss."""
        ...


class Reporter(Protocol):
    """What long work tells its user."""

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Bar]:
        """A bar of ``total`` units while the context lasts."""
        yield  # type: ignore[misc]  # a protocol has no task to give

    def tally(self, tally: Tally) -> None:
        """How far the run is, after every change; only its driver tells."""
        return None

    def say(self, message: str) -> None:
        """A line that stays."""
        ...

    def warn(self, message: str) -> None:
        """A line that stays and should be read."""
        ...


class LiveReporter:
    """A table of the run and a bar a running task; a context manager around the work."""

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
        """The table."""
        table = Table(box=box.SIMPLE_HEAD)
        for name in ("cells", "done", "failed", "to do", "tasks running", "ETA"):
            table.add_column(name, justify="right")
        failed = Text(str(tally.failed), style="red" if tally.failed else "")
        to_do = tally.total - tally.done - tally.failed
        row = [tally.total, tally.done, failed, to_do, tally.running, tally.left]
        table.add_row(*[one if isinstance(one, Text) else str(one) for one in row])
        self._table = table

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Bar]:
        """A live bar; a line remains of it."""
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
        """A line above the bars."""
        self._console.print(message, highlight=False, markup=False)

    def warn(self, message: str) -> None:
        """A yellow line above the bars."""
        self._console.print(f"warning: {message}", style="yellow", highlight=False, markup=False)


class PlainReporter:
    """A line when a task begins and ends, and one every 15 seconds between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told = time.monotonic()

    def __enter__(self) -> PlainReporter:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Bar]:
        """Lines with the share done and the time left."""
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
        """A line every 15 seconds."""
        now = time.monotonic()
        if now - self._told >= LINE_SECONDS:
            self._told = now
            self.say(
                f"cells: {tally.done} of {tally.total} done, {tally.failed} failed; "
                f"{tally.running} tasks running, ETA {tally.left}"
            )

    def say(self, message: str) -> None:
        """A plain line."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        """A plain line."""
        self.say(f"warning: {message}")


class QuietReporter(Reporter):
    """Says nothing: another process reports."""

    def __enter__(self) -> QuietReporter:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Bar]:
        """No bar."""

        class Nothing:
            def advance(self, amount: int, note: str = "") -> None: ...

        yield Nothing()

    def tally(self, tally: Tally) -> None:
        """Nothing."""

    def say(self, message: str) -> None:
        """Nothing."""

    def warn(self, message: str) -> None:
        """Nothing."""


def duration(seconds: float) -> str:
    """``8.3 s``, ``4 min``, ``2 h 05 min``, ``3 d 4 h``."""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def reporter_for(console: Console) -> LiveReporter | PlainReporter:
    """Bars on a terminal, lines elsewhere."""
    return LiveReporter(console) if console.is_terminal else PlainReporter(console)
