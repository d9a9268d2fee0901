"""The executor that uses a Ray cluster.

If no cluster is running, one is started on this machine for the time of the run.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from dmlbench.common.errors import UserError
from dmlbench.common.progress import QuietReporter, duration
from dmlbench.common.text import first_line, message_of
from dmlbench.storage.cell import Cell
from dmlbench.sweep.executors.base import FinishedTask
from dmlbench.sweep.session import Session, Stopwatch
from dmlbench.sweep.tasks import Task

if TYPE_CHECKING:
    from dmlbench.sweep.worker import Worker

RETRIES = 2  # further attempts at a task whose worker dies
POLL_SECONDS = 1.0


class RayCluster:
    """The executor of a Ray cluster. Its machines must share the results folder.

    Args:
        session: settings of the run.
        workers: number of tasks at the same time; None: as many as the cluster has room for.
        gpus: number of GPUs for each task; with a fraction several tasks share a GPU. None: one,
            if the cluster has GPUs and the device is not the CPU.
        limit: time limit of a task in seconds, including the start of its worker; None: no limit.

    Raises:
        UserError: Ray is not installed.
    """

    def __init__(
        self, session: Session, workers: int | None, gpus: float | None, limit: float | None
    ) -> None:
        try:
            import ray
        except ImportError:
            raise UserError(
                "--executor ray needs Ray: pip install 'dmlbench[ray]' (285 MB)"
            ) from None
        self._ray = ray
        self._session = session
        self._requested, self._gpus, self._limit = workers, gpus, limit
        self._running: dict[Any, tuple[Task, Stopwatch]] = {}
        self.workers = workers or 1

    def __enter__(self) -> Self:
        ray, session = self._ray, self._session
        cpus = session.compute.threads or 1
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet = {"log_to_driver": False, "logging_level": "error"}
        try:
            ray.init(address="auto", **quiet)
        except ConnectionError:  # no cluster is running
            capacity = self._requested and self._requested * cpus
            try:
                ray.init(num_cpus=capacity, include_dashboard=False, **quiet)
            except Exception as error:  # Ray has no class of its own for this
                reason = message_of(error)
                raise UserError(
                    f"Ray cannot start: {reason} 'ray start --head' starts a cluster beforehand; "
                    "--workers alone needs no Ray"
                ) from None
        resources = ray.cluster_resources()
        gpus = self._gpus
        if gpus is None:
            gpus = 1.0 if resources.get("GPU") and session.compute.device != "cpu" else 0.0
        capacity = int(resources.get("CPU", 0) / cpus)
        if gpus:
            capacity = min(capacity, int(resources.get("GPU", 0) / gpus))
        if not capacity:
            raise UserError(
                f"the Ray cluster has no room for a task of {cpus} CPUs and {gpus:g} GPUs: it has "
                f"{resources.get('CPU', 0):g} and {resources.get('GPU', 0):g}"
            )
        self.workers = min(self._requested or capacity, capacity)
        store = replace(session.store, root=session.store.root.resolve())
        compute = replace(session.compute, threads=cpus)
        data_root = session.data_root and session.data_root.resolve()
        cache = session.cache and session.cache.resolve()
        planned = session.digest if session.dataset.known_digest is None else None
        settings = (session.dataset, data_root, cache, store, compute, planned, tuple(sys.argv))
        self._settings = ray.put(settings)
        self._remote_task = ray.remote(_do_task).options(
            num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES
        )
        return self

    def __exit__(self, *_: object) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._ray.shutdown()

    def idle(self) -> str | None:
        """Return "" as long as there is room, because Ray chooses the worker; else None."""
        return "" if len(self._running) < self.workers else None

    def start(self, task: Task) -> None:
        """Submit the task to Ray."""
        self._running[self._remote_task.remote(self._settings, task)] = task, Stopwatch()

    def wait(self) -> list[FinishedTask]:
        """Wait for at most a second; return the tasks that have ended."""
        finished = []
        done, _ = self._ray.wait(list(self._running), timeout=POLL_SECONDS)
        for reference in done:
            task, watch = self._running.pop(reference)
            problem, failure = self._ended(reference)
            finished.append(FinishedTask(task, watch.seconds, problem, failure))
            self._session.reporter.say(f"{task.title}: ended after {duration(watch.seconds)}")
        for reference, (task, watch) in list(self._running.items()):
            if self._limit and watch.seconds > self._limit:
                self._ray.cancel(reference, force=True)
                del self._running[reference]
                problem = f"stopped after {self._limit:g} s (--cell-timeout)"
                finished.append(FinishedTask(task, watch.seconds, problem))
        return finished

    def _ended(self, reference: Any) -> tuple[str | None, Cell | None]:
        """Print the warnings of a task; return ``problem`` and ``failure`` of its end.

        Raises:
            UserError: the task has found that the others would fail too.
        """
        try:
            refused, warnings, failure = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            raised = isinstance(error, self._ray.exceptions.RayTaskError)  # which is not repeated
            tries = "Ray gave it up" + f" after {RETRIES + 1} tries" * (not raised)
            return f"{tries} ({type(error).__name__}: {first_line(error)})", None
        for line in warnings:
            self._session.reporter.warn(line)
        if refused is not None:
            raise UserError(refused)
        return None, failure


class _WarningCollector(QuietReporter):
    """The reporter of a task on a cluster: it collects warnings and shows no progress."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        """Keep a warning, which the main process prints when the task has ended."""
        self.warnings.append(message)


_workers: dict[
    tuple[Any, ...], tuple[Worker, _WarningCollector]
] = {}  # kept between the tasks of this process, with data


def _do_task(settings: tuple[Any, ...], task: Task) -> tuple[str | None, list[str], Cell | None]:
    """Do a task in a process of Ray.

    Returns:
        The reason why the run cannot continue, or None; the warnings; and the failed cell, or None.
    """
    from dmlbench.sweep.worker import Worker

    try:
        if settings not in _workers:
            dataset, data_root, cache, store, compute, planned, argv = settings
            sys.argv = list(argv)  # for the provenance
            reporter = _WarningCollector()
            session = Session(dataset, data_root, cache, store, compute, reporter, planned=planned)
            _workers[settings] = Worker(session), reporter
        worker, reporter = _workers[settings]
        reporter.warnings.clear()
        failure = worker.do(task)
    except UserError as error:
        return str(error), [], None
    return None, reporter.warnings, failure
