"""The default executor: one task after another, in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from dmlbench.sweep.executors.base import FinishedTask
from dmlbench.sweep.session import Session, Stopwatch
from dmlbench.sweep.tasks import Task

if TYPE_CHECKING:
    from dmlbench.sweep.worker import Worker


class Serial:
    """The executor that uses this process alone."""

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
        """Return the model of the last task; None if a task has been given and is not done."""
        return self._model if self._task is None else None

    def start(self, task: Task) -> None:
        """Accept a task, which ``wait`` will do."""
        self._task, self._model = task, task.model

    def wait(self) -> list[FinishedTask]:
        """Do the accepted task."""
        task, self._task = self._task, None
        if task is None:
            return []
        watch = Stopwatch()
        failure = self._worker.do(task)
        return [FinishedTask(task, watch.seconds, failure=failure)]
