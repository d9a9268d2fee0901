"""The interface by which long work reports its progress. It knows no console.

``common.console_progress`` shows it on a terminal, in a notebook or as lines in a pipe.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Tally:
    """The progress of a run, in numbers.

    Attributes:
        total: cells of the run.
        done: cells with a number.
        failed: cells that have failed, or whose model has failed.
        running: tasks that are being done now.
        seconds: estimated time for the rest; None if nothing like it was done before.
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
    """A progress bar."""

    def advance(self, amount: float, note: str | None = None) -> None:
        """Report ``amount`` more units as done, which may be a part of one.

        ``note`` is shown beside the bar, e.g. the loss; None: the last one stays.
        """
        ...


class Reporter(Protocol):
    """Receives the progress and the messages of long work, and shows them to the user."""

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Bar]:
        """Show a bar of ``total`` units while the context lasts.

        ``done`` of them were done before, e.g. by a run that was stopped: they say nothing about
        the speed of this one.
        """
        yield  # type: ignore[misc]  # a protocol has no task to give

    def tally(self, tally: Tally) -> None:
        """Take the state of the whole run; the scheduler calls this after every change."""
        return None

    def say(self, message: str) -> None:
        """Print a line."""
        ...

    def warn(self, message: str) -> None:
        """Print a line that warns."""
        ...


class QuietReporter(Reporter):
    """Shows nothing, e.g. because another process reports."""

    def __enter__(self) -> QuietReporter:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Bar]:
        """Show no bar."""

        class Nothing:
            def advance(self, amount: float, note: str | None = None) -> None: ...

        yield Nothing()

    def say(self, message: str) -> None:
        """Print nothing."""

    def warn(self, message: str) -> None:
        """Print nothing."""


def duration(seconds: float) -> str:
    """A time in words: ``8.3 s``, ``4 min``, ``2 h 05 min``, ``3 d 4 h``."""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
