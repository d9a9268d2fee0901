"""What the cross product asks of an executor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

from dmlbench.sweep.tasks import Task


@dataclass(frozen=True)
class Ending:
    """A task that has ended.

    Attributes:
        task: what it was.
        seconds: how long it took.
        problem: why it left no row (its process died, it took too long); None where it left one.
    """

    task: Task
    seconds: float
    problem: str | None = None


class Executor(Protocol):
    """Does tasks; a context manager around the work, inside which processes live.

    Attributes:
        workers: how many tasks it does at once.
    """

    workers: int

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def idle(self) -> str | None:
        """The model that an idle worker holds in memory ("": none); None if all are busy."""
        ...

    def start(self, task: Task) -> None:
        """Give a task to that worker."""
        ...

    def wait(self) -> list[Ending]:
        """What has ended since; it may be nothing yet.

        Raises:
            UserError: a task found that no other can go on.
        """
        ...
