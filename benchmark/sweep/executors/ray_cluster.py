"""Tasks on a Ray cluster: one that is there, else one made on this machine for the run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from dmlbench.common import progress
from dmlbench.common.errors import UserError
from dmlbench.common.progress import duration
from dmlbench.sweep.executors.base import Ending
from dmlbench.sweep.session import Session, Stopwatch
from dmlbench.sweep.tasks import Task

if TYPE_CHECKING:
    from dmlbench.sweep.worker import Worker

RETRIES = 2  # of a task whose worker dies
POLL_SECONDS = 1.0


class RayCluster:
    """The executor of a Ray cluster; the results folder must be shared by its machines.

    Args:
        session: of the run.
        workers: tasks at once; None: as many as the cluster has room for.
        gpus: GPUs that a task takes, a fraction lets tasks share one; None: one if there are any
            and the device is not the CPU.
        limit: seconds that a task may take, the start of its worker included; None: no limit.

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
        self._asked, self._gpus, self._limit = workers, gpus, limit
        self._running: dict[Any, tuple[Task, Stopwatch]] = {}
        self.workers = workers or 1

    def __enter__(self) -> Self:
        ray, session = self._ray, self._session
        cpus = session.compute.threads or 1
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet = {"log_to_driver": False, "logging_level": "error"}
        try:
            ray.init(address="auto", **quiet)
        except ConnectionError:  # there is none yet
            room = self._asked and self._asked * cpus
            ray.init(num_cpus=room, include_dashboard=False, **quiet)
        has = ray.cluster_resources()
        gpus = self._gpus
        if gpus is None:
            gpus = 1.0 if has.get("GPU") and session.compute.device != "cpu" else 0.0
        room = int(has.get("CPU", 0) / cpus)
        if gpus:
            room = min(room, int(has.get("GPU", 0) / gpus))
        if not room:
            raise UserError(
                f"the Ray cluster has no room for a task of {cpus} CPUs and {gpus:g} GPUs: it has "
                f"{has.get('CPU', 0):g} and {has.get('GPU', 0):g}"
            )
        self.workers = min(self._asked or room, room)
        store = replace(session.store, root=session.store.root.resolve())
        compute = replace(session.compute, threads=cpus)
        data_root = session.data_root and session.data_root.resolve()
        cache = session.cache and session.cache.resolve()
        facts = (session.dataset, data_root, cache, store, compute, tuple(sys.argv))
        self._facts = ray.put(facts)
        self._do = ray.remote(_do).options(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)
        return self

    def __exit__(self, *_: object) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._ray.shutdown()

    def idle(self) -> str | None:
        """No model in particular while there is room: Ray chooses the worker."""
        return "" if len(self._running) < self.workers else None

    def start(self, task: Task) -> None:
        """Submit it."""
        self._running[self._do.remote(self._facts, task)] = task, Stopwatch()

    def wait(self) -> list[Ending]:
        """What ended within a second."""
        endings = []
        done, _ = self._ray.wait(list(self._running), timeout=POLL_SECONDS)
        for reference in done:
            task, watch = self._running.pop(reference)
            problem = self._problem(reference)
            endings.append(Ending(task, watch.seconds, problem))
            self._session.reporter.say(f"{task.title}: ended after {duration(watch.seconds)}")
        for reference, (task, watch) in list(self._running.items()):
            if self._limit and watch.seconds > self._limit:
                self._ray.cancel(reference, force=True)
                del self._running[reference]
                problem = f"stopped after {self._limit:g} s (--cell-timeout)"
                endings.append(Ending(task, watch.seconds, problem))
        return endings

    def _problem(self, reference: Any) -> str | None:
        """Pass on what a task said; why it left no row, if it did not."""
        try:
            refused, said = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().partition("\n")[0]
            return f"Ray gave it up after {RETRIES + 1} tries ({type(error).__name__}: {reason})"
        for line in said:
            self._session.reporter.warn(line)
        if refused is not None:
            raise UserError(refused)
        return None


class _Notes(progress.Reporter):
    """The reporter of a task on a cluster: warnings come back with it, progress does not."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[progress.Bar]:
        """A bar nobody sees."""

        class Unseen:
            def advance(self, amount: int, note: str = "") -> None: ...

        yield Unseen()

    def say(self, message: str) -> None:
        """Not passed on."""

    def warn(self, message: str) -> None:
        """A warning of the driver's, when the task has ended."""
        self.said.append(message)


_workers: dict[tuple[Any, ...], tuple[Worker, _Notes]] = {}  # of this Ray worker: data stay loaded


def _do(facts: tuple[Any, ...], task: Task) -> tuple[str | None, list[str]]:
    """Do a task in a worker of Ray; why the run cannot go on (or None), and what was said."""
    from dmlbench.sweep.worker import Worker

    try:
        if facts not in _workers:
            dataset, data_root, cache, store, compute, argv = facts
            sys.argv = list(argv)  # for the provenance
            notes = _Notes()
            session = Session(dataset, data_root, cache, store, compute, notes)
            _workers[facts] = Worker(session), notes
        worker, notes = _workers[facts]
        notes.said.clear()
        worker.do(task)
    except UserError as error:
        return str(error), []
    return None, notes.said
