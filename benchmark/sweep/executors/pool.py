"""The executor that uses several worker processes on this machine.

GPUs are assigned to the workers in turn, and CPU threads are divided among them, 16 to each at
most. A worker that hangs or dies is replaced.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Self

from dmlbench.common import progress
from dmlbench.common.errors import CellError, UserError
from dmlbench.common.processes import serve_parent
from dmlbench.compute.device import MOST_THREADS, processors
from dmlbench.sweep.executors.base import FinishedTask
from dmlbench.sweep.session import Session, Stopwatch
from dmlbench.sweep.tasks import Task

ATTEMPTS = 3  # attempts at a task whose worker dies
STOPS = (signal.SIGINT, signal.SIGTERM)
REPORT_SECONDS = 0.2  # at least, between two progress messages of a worker
POLL_SECONDS = 1.0  # between two checks of the time limit


@dataclass(eq=False)
class _WorkerProcess:
    """A worker process, and the task that it is doing."""

    number: int
    process: SpawnProcess
    connection: Connection
    ready: bool = False
    model: str = ""
    task: Task | None = None
    watch: Stopwatch = field(default_factory=Stopwatch)
    bar: tuple[AbstractContextManager[progress.Bar], progress.Bar] | None = None

    @property
    def name(self) -> str:
        """The name under which deaths without a task are counted."""
        return f"worker {self.number}"

    def begin(self, task: Task) -> None:
        """Send the worker a task."""
        self.task, self.model, self.watch = task, task.model, Stopwatch()
        with contextlib.suppress(OSError):  # the worker has just died: ``wait`` will notice
            self.connection.send(task)

    def remove_bar(self) -> None:
        """Remove the bar of a task that has not finished."""
        bar, self.bar = self.bar, None
        if bar is not None:
            with contextlib.suppress(CellError):
                bar[0].__exit__(CellError, CellError("it failed"), None)


class Pool:
    """The executor of ``workers`` processes.

    A task whose worker dies is repeated by another worker, at most three times in all. If the main
    process dies, its workers end too.

    Args:
        session: settings of the run.
        workers: number of processes.
        limit: time limit of a task in seconds; None: no limit.
    """

    def __init__(self, session: Session, workers: int, limit: float | None) -> None:
        self.workers = workers
        self._limit = limit
        self._reporter = session.reporter
        share = min(MOST_THREADS, max(1, processors() // workers))
        compute = replace(session.compute, threads=session.compute.threads or share)
        # the plan has read images whose digest the data set does not declare
        planned = session.digest if session.dataset.known_digest is None else None
        places = session.dataset, session.data_root, session.cache, session.store
        self._session = (*places, compute, planned)
        self._workers: list[_WorkerProcess] = []
        self._deaths: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._workers = [self._start_worker(number) for number in range(self.workers)]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            self._stop_worker(worker)

    def idle(self) -> str | None:
        """Return the model of an idle worker; one that is still starting counts as idle."""
        free = self._idle_worker()
        return None if free is None else free.model

    def start(self, task: Task) -> None:
        """Give the task to the idle worker."""
        worker = self._idle_worker()
        assert worker is not None
        worker.begin(task)

    def wait(self) -> list[FinishedTask]:
        """Wait for messages for at most a second; return the tasks that have ended."""
        finished = []
        by_connection = {worker.connection: worker for worker in self._workers}
        for connection in wait(list(by_connection), POLL_SECONDS):
            worker = by_connection[connection]  # type: ignore[index]
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                finished += self._handle_death(worker)
            else:
                finished += self._handle_message(worker, message)
        for worker in self._workers:
            taken = worker.watch.seconds
            if worker.task is not None and self._limit and worker.ready and taken > self._limit:
                problem = f"stopped after {self._limit:g} s (--cell-timeout)"
                finished.append(FinishedTask(worker.task, taken, problem))
                self._replace_worker(worker)
        return finished

    def _handle_message(
        self, worker: _WorkerProcess, message: tuple[str, Any]
    ) -> list[FinishedTask]:
        """Handle one message of a worker; return its task if that has ended."""
        kind, content = message
        if kind == "refused":
            raise UserError(content)
        if kind == "ready":
            worker.ready, worker.watch = True, Stopwatch()
            self._deaths.pop(worker.name, None)
        elif kind == "task":
            context = self._reporter.task(*content)
            worker.bar = context, context.__enter__()
        elif kind == "advance" and worker.bar:
            worker.bar[1].advance(*content)
        elif kind == "end" and worker.bar:
            worker.bar[0].__exit__(None, None, None)
            worker.bar = None
        elif kind in ("say", "warn"):
            getattr(self._reporter, kind)(content)
        elif kind == "done":
            task, worker.task = worker.task, None
            worker.remove_bar()
            assert task is not None
            return [FinishedTask(task, worker.watch.seconds, failure=content)]
        return []

    def _handle_death(self, worker: _WorkerProcess) -> list[FinishedTask]:
        """Replace a worker that has died; repeat its task, or give the task up."""
        task, seconds = worker.task, worker.watch.seconds
        worker.process.join(POLL_SECONDS)  # so that its own exit code is seen
        successor = self._replace_worker(worker)
        cause = _cause_of_death(worker.process)
        counted = worker.name if task is None else task.cell.id
        self._deaths[counted] += 1
        give_up = self._deaths[counted] >= ATTEMPTS
        if task is None:
            if give_up:
                raise UserError(f"worker processes die as they start ({cause})")
            return []
        if give_up:
            hint = "if memory was short, use fewer --workers or a smaller --batch-size"
            if worker.process.exitcode == 1:  # an error of Python
                hint = (
                    "its error is printed above; a script that starts workers has to do so below "
                    "if __name__ == '__main__':"
                )
            return [
                FinishedTask(task, seconds, f"its worker died {ATTEMPTS} times ({cause}); {hint}")
            ]
        self._reporter.warn(f"{task.title}: its worker died ({cause}); trying again")
        successor.begin(task)
        return []

    def _idle_worker(self) -> _WorkerProcess | None:
        return next((worker for worker in self._workers if worker.task is None), None)

    def _start_worker(self, number: int) -> _WorkerProcess:
        context = multiprocessing.get_context("spawn")
        own_end, worker_end = context.Pipe()
        process = context.Process(target=_worker_main, args=(number, worker_end, self._session))
        with stops_deferred():
            process.start()
        worker_end.close()
        return _WorkerProcess(number, process, own_end)

    def _replace_worker(self, worker: _WorkerProcess) -> _WorkerProcess:
        self._stop_worker(worker)
        successor = self._start_worker(worker.number)
        self._workers[self._workers.index(worker)] = successor
        return successor

    def _stop_worker(self, worker: _WorkerProcess) -> None:
        worker.process.kill()  # safe: files are written atomically, and each epoch is saved
        worker.process.join()
        worker.connection.close()
        worker.remove_bar()


class _PipeReporter(progress.Reporter):
    """The reporter of a worker: it sends everything to the reporter of the main process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[progress.Bar]:
        """Show a bar in the main process."""
        send = self._connection.send

        class Remote:
            amount = 0.0
            note: str | None = None
            last = time.monotonic()

            def advance(self, amount: float, note: str | None = None) -> None:
                self.amount += amount
                self.note = self.note if note is None else note
                if time.monotonic() - self.last >= REPORT_SECONDS:
                    send(("advance", (self.amount, self.note)))
                    self.amount, self.last = 0.0, time.monotonic()

        send(("task", (title, total, done)))
        bar = Remote()
        yield bar
        send(("advance", (bar.amount, None)))
        send(("end", None))

    def say(self, message: str) -> None:
        """Print a line in the main process."""
        self._connection.send(("say", message))

    def warn(self, message: str) -> None:
        """Print a warning in the main process."""
        self._connection.send(("warn", message))


@contextmanager
def stops_deferred() -> Iterator[None]:
    """Handle a stop (Ctrl-C, SIGTERM) that comes within the context at its end only.

    A process that is stopped while it starts another one prints a traceback. Nor does Ctrl-C reach
    a process that is started within: it begins with this thread's mask of signals. For this one a
    mask would not do, as another thread would take the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # stops are handled in the main thread
        return
    arrived: list[int] = []
    before = {one: signal.signal(one, lambda number, _: arrived.append(number)) for one in STOPS}
    masks = hasattr(signal, "pthread_sigmask")  # not on Windows
    if masks:
        resource_tracker.ensure_running()  # else it is started with the process, and ends the mask
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]) if masks else set()
    try:
        yield
    finally:
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for one, handler in before.items():
            signal.signal(one, handler)
        for number in arrived:
            signal.raise_signal(number)


def _worker_main(number: int, connection: Connection, common: tuple[Any, ...]) -> None:
    """Run in a worker process: do the tasks that arrive until the connection closes."""
    serve_parent()
    reporter = _PipeReporter(connection)
    warnings.showwarning = lambda message, *_, **__: reporter.warn(str(message))
    try:
        from dmlbench.sweep.worker import Worker

        dataset, data_root, cache, store, compute, planned = common
        own = replace(compute, device=_device_of_worker(compute.device, number))
        places = dataset, data_root, cache, store, own, reporter
        read = planned is not None  # by the main process, on this machine
        session = Session(*places, planned=planned, read_before=read)
        worker = Worker(session)
        connection.send(("ready", None))
        while True:
            connection.send(("done", worker.do(connection.recv())))
    except UserError as error:
        connection.send(("refused", str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the main process has ended


def _device_of_worker(device: str, number: int) -> str:
    """Return the device of worker ``number``: GPUs in turn, unless the user named a certain one."""
    import torch

    count = torch.cuda.device_count()
    return f"cuda:{number % count}" if device in ("auto", "cuda") and count else device


def _cause_of_death(process: SpawnProcess) -> str:
    code = process.exitcode or 0
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
