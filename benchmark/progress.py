"""Progress that suits where it goes: live bars with an ETA on a terminal, plain lines in a pipe."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_SECONDS = 15.0  # between two plain lines of one task


class Task(Protocol):
    """One bar."""

    def advance(self, amount: int, note: str = "") -> None:
        """``amount`` more is done; ``note`` says how it goes, e.g. the loss."""
        ...


class Reporter(Protocol):
    """What long work tells its user."""

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Task]:
        """A bar of ``total`` units while the context lasts."""
        yield  # type: ignore[misc]  # a protocol has no task to give

    def say(self, message: str) -> None:
        """A line that stays."""
        ...

    def warn(self, message: str) -> None:
        """A line that stays and should be read."""
        ...


class LiveReporter:
    """Rich bars; start it as a context manager around the work."""

    def __init__(self, console: Console) -> None:
        self._console = console
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

    def __enter__(self) -> LiveReporter:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Task]:
        """A live bar."""
        progress, number = self._progress, self._progress.add_task(title, total=total, note="")

        class Bar:
            def advance(self, amount: int, note: str = "") -> None:
                progress.update(number, advance=amount, note=note)

        yield Bar()
        progress.update(number, note="")

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

    def __enter__(self) -> PlainReporter:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Task]:
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
                say(f"{title}: {self.done}/{total}, {left:.0f} s left {note}".rstrip())

        say(f"{title} ...")
        yield Lines()
        say(f"{title}: done in {time.monotonic() - begun:.1f} s")

    def say(self, message: str) -> None:
        """A plain line."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        """A plain line."""
        self.say(f"warning: {message}")


class QuietReporter:
    """Says nothing: another process reports."""

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Task]:
        """No bar."""

        class Nothing:
            def advance(self, amount: int, note: str = "") -> None: ...

        yield Nothing()

    def say(self, message: str) -> None:
        """Nothing."""

    def warn(self, message: str) -> None:
        """Nothing."""


def reporter_for(console: Console) -> LiveReporter | PlainReporter:
    """Bars on a terminal, lines elsewhere."""
    return LiveReporter(console) if console.is_terminal else PlainReporter(console)
