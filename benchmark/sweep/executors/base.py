"""The interface between the scheduler and an executor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

from dmlbench.storage.cell import Cell
from dmlbench.sweep.tasks import Task


@dataclass(frozen=True)
class FinishedTask:
    """A task that has ended.

    Attributes:
        task: the task.
        seconds: its duration.
        problem: the reason why the task has stored nothing (its process died, or it took too long);
            None if it has stored its result or its failure.
        failure: the failed cell of a task that says itself that it has failed; else None.
    """

    task: Task
    seconds: float
    problem: str | None = None
    failure: Cell | None = None


class Executor(Protocol):
    """Does tasks. It is a context manager: processes live as long as its ``with`` block.

    Attributes:
        workers: number of tasks that it does at the same time.
    """

    workers: int

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def idle(self) -> str | None:
        """Return the model that an idle worker has in memory, "" for none; None if all are busy."""
        ...

    def start(self, task: Task) -> None:
        """Give a task to the worker that ``idle`` has described."""
        ...

    def wait(self) -> list[FinishedTask]:
        """Wait a moment and return the tasks that have ended since the last call, if any.

        Raises:
            UserError: a task has found that the others would fail too.
        """
        ...
