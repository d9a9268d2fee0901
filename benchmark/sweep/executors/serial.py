"""One task after another in this process: what a run does unless it is told otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from dmlbench.sweep.executors.base import Ending
from dmlbench.sweep.session import Session, Stopwatch
from dmlbench.sweep.tasks import Task

if TYPE_CHECKING:
    from dmlbench.sweep.worker import Worker


class Serial:
    """The executor of one process."""

    workers = 1

    def __init__(self, session: Session) -> None:
        self._session = session
        self._worker: Worker
        self._task: Task | None = None
        self._model = ""

    def __enter__(self) -> Self:
        from dmlbench.sweep.worker import Worker

        self._worker = Worker(self._session)
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.close()

    def idle(self) -> str | None:
        """The model measured last, unless a task waits to be done."""
        return self._model if self._task is None else None

    def start(self, task: Task) -> None:
        """Take a task; ``wait`` does it."""
        self._task, self._model = task, task.model

    def wait(self) -> list[Ending]:
        """Do the task."""
        task, self._task = self._task, None
        if task is None:
            return []
        watch = Stopwatch()
        self._worker.do(task)
        return [Ending(task, watch.seconds)]
