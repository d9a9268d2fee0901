"""The scheduler: gives the tasks of a plan to an executor, and counts what is done.

It can be repeated: tasks whose result is stored already are not done again.
"""

from __future__ import annotations

import shutil
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dmlbench.common.errors import CellError
from dmlbench.common.progress import Tally, duration
from dmlbench.common.text import counted
from dmlbench.storage import checkpoint
from dmlbench.storage.cell import Cell
from dmlbench.sweep.durations import Durations, TaskKind
from dmlbench.sweep.executors.base import Executor, FinishedTask
from dmlbench.sweep.plan import cells
from dmlbench.sweep.policies import DONE, FAILED, KEPT_STATUSES, STALE
from dmlbench.sweep.session import Session, Stopwatch, store_failure
from dmlbench.sweep.status import PlannedModel, StoredCells
from dmlbench.sweep.tasks import CellTask, Combine, PlannedAttack, Task, Train
from dmlbench.sweep.weights import trained_weights


@dataclass
class _ModelProgress:
    """The progress of one model during a run.

    Attributes:
        entry: the model in the plan.
        tasks: the tasks of all its cells.
        ready: tasks that can start now.
        waiting: combined scores whose cells are not all measured yet.
        unfinished: number of tasks that are ready or running.
    """

    entry: PlannedModel
    tasks: list[CellTask]
    ready: deque[Task] = field(default_factory=deque)
    waiting: list[Combine] = field(default_factory=list)
    unfinished: int = 0

    def add(self, tasks: Iterable[Task]) -> None:
        """Add tasks that must be done."""
        for task in tasks:
            if isinstance(task, Combine):
                self.waiting.append(task)
            else:
                self.ready.append(task)
                self.unfinished += 1


@dataclass
class Scheduler:
    """Runs the tasks of a plan.

    Attributes:
        planned: the models of the plan.
        attacks: the attacks of the run.
        session: settings that all tasks share.
        executor: does the tasks.
        known: the cells in the store; updated during the run.
        durations: those of tasks; updated during the run.
        resume: the policy for stored results, a key of ``policies.KEPT_STATUSES``.
        total, done, failed: number of cells in the plan, with a result, and without one.
        left: number of tasks of each kind that are not finished.
        running: identity of a cell -> the kind of its task and the time since it began.
    """

    planned: Sequence[PlannedModel]
    attacks: Sequence[PlannedAttack]
    session: Session
    executor: Executor
    known: StoredCells
    durations: Durations
    resume: str
    done: int = 0
    failed: int = 0
    total: int = 0
    ended: int = 0  # number of tasks that this run has finished
    watch: Stopwatch = field(default_factory=Stopwatch)
    models: dict[str, _ModelProgress] = field(default_factory=dict)
    left: Counter[TaskKind] = field(default_factory=Counter)
    running: dict[str, tuple[TaskKind, Stopwatch]] = field(default_factory=dict)

    def run(self) -> list[Cell]:
        """Do the tasks that are left.

        If a task fails, its cell is stored as failed and the run continues.

        Returns:
            The cells of all models, in their order, including those that were stored before.

        Raises:
            UserError: no task can succeed (a full disk, a damaged checkpoint). Finished results
                stay in the store.
        """
        for entry in self.planned:
            self._add_entry(entry)
        self._report()
        while any(model.unfinished for model in self.models.values()):
            while (idle_model := self.executor.idle()) is not None and self._start(idle_model):
                self._report()
            for finished in self.executor.wait() if self.running else ():
                self._record_end(finished)
            self._report()
        return [cell for entry in self.planned for cell in self._cells(entry)]

    @property
    def summary(self) -> str:
        """The outcome of the run, on one line."""
        text = f"{self.done} of {self.total} cells done, {self.failed} failed"
        if not self.ended:
            return f"{text}; there was nothing to do"
        tasks = counted(self.ended, "task", "tasks")
        return f"{text}; {tasks} took {duration(self.watch.seconds)}"

    def _add_entry(self, entry: PlannedModel) -> None:
        first_tasks, kept = entry.first_tasks(self.resume), KEPT_STATUSES[self.resume]
        self.total += len(entry.cells)
        for task, status in entry.cells:
            if status in kept:
                self.done += status in (DONE, STALE)
                self.failed += status == FAILED
            elif first_tasks:
                self.left[self.durations.kind(task)] += 1
            else:
                self.failed += 1  # its training has failed and is not repeated
        if first_tasks:
            model = _ModelProgress(entry, [task for task, _ in entry.cells])
            model.add(first_tasks)
            self.models[first_tasks[0].model] = model
            if isinstance(first_tasks[0], Train):
                self.left[self.durations.kind(first_tasks[0])] += 1
            self._start_combining(model)

    def _start(self, idle_model: str) -> bool:
        """Start the next task on the idle worker; return False if no task is ready.

        A task of the model ``idle_model``, which the worker has in memory, comes first. Then come
        trainings, because other tasks wait for them, and then the model with most tasks.
        """

        def rank(name: str) -> tuple[bool, bool, int]:
            ready = self.models[name].ready
            return name == idle_model, isinstance(ready[0], Train), len(ready)

        name = max((n for n, m in self.models.items() if m.ready), key=rank, default=None)
        if name is None:
            return False
        task = self.models[name].ready.popleft()
        self.running[task.cell.id] = self.durations.kind(task), Stopwatch()
        again = self.resume == "never" or isinstance(task, Combine)  # of new cells, in no time
        if not again and self.session.done(task.cell):
            self._finish(task)  # another run in this folder has done it since it was planned
            return True
        if self.resume == "never":
            # here, once: if the worker dies, the next one goes on after the last epoch or batch
            store = self.session.store
            if isinstance(task, Train):
                shutil.rmtree(store.model_folder(task.model), ignore_errors=True)
            store.forget_interrupted(task.cell.id)
        self.executor.start(task)
        return True

    def _record_end(self, finished: FinishedTask) -> None:
        """Record a task that has ended; if it left no cell, store a failed one."""
        task, failure = finished.task, finished.failure
        if finished.problem is None:
            cell = self.session.store.done(task.cell.id)
            if cell and not failure:  # of a training there is none: its manifest has the time
                self.durations.add(self.durations.kind(task), cell.seconds)  # of earlier runs, too
        else:
            error, watch = CellError(finished.problem), Stopwatch.ended(finished.seconds)
            failure = store_failure(self.session, task.cell, task.title, error, watch)
        self._finish(task, failure)

    def _finish(self, task: Task, failure: Cell | None = None) -> None:
        """Count a task. A failure counts also where the store keeps an earlier number."""
        self.session.store.check_in_place()
        model = self.models[task.model]
        model.unfinished -= 1
        del self.running[task.cell.id]
        self.ended += 1
        self.left[self.durations.kind(task)] -= 1
        cell = failure or self.session.store.get(task.cell.id)
        if cell is not None:
            self.known.cells[cell.id] = cell
        if isinstance(task, Train):
            self._add_trained_cells(task, model, failed=cell is not None)
        elif cell is not None and cell.ok:
            self.done += 1
        else:
            self.failed += 1
        self._start_combining(model)

    def _add_trained_cells(self, task: Train, model: _ModelProgress, failed: bool) -> None:
        """Add the cells of a model after its training: its weights now give them an identity."""
        store, training = self.session.store, task.training
        statuses = [status for _, status in model.entry.cells]
        wanted = [status not in KEPT_STATUSES[self.resume] for status in statuses]
        if failed:
            self._give_up([t for t, want in zip(model.tasks, wanted, strict=True) if want])
            return
        self.known.cells.pop(task.cell.id, None)
        manifest = checkpoint.verified_manifest(store.model_folder(training.id), training.facts)
        if manifest is not None:
            self.durations.add(self.durations.kind(task), manifest.seconds)  # of earlier runs, too
        weights = trained_weights(task.training, manifest, store, self.session.compute)
        planned = cells(weights, self.attacks, self.session.dataset.benign)
        for number, (cell, want) in enumerate(zip(planned, wanted, strict=True)):
            if want:
                model.tasks[number] = cell
                model.add([cell])

    def _start_combining(self, model: _ModelProgress) -> None:
        """Make the combined scores of a model ready once all its measurements have ended."""
        if model.unfinished:
            return
        waiting, model.waiting = model.waiting, []
        for task in waiting:
            sources = [self.known.cells.get(cell_id) for cell_id, _ in task.sources]
            if all(cell is not None and cell.ok for cell in sources):
                model.ready.append(task)
                model.unfinished += 1
            else:
                self._give_up([task])

    def _give_up(self, tasks: Sequence[CellTask]) -> None:
        """Count cells as failed because a task that they need has failed."""
        self.failed += len(tasks)
        self.left.subtract(self.durations.kind(task) for task in tasks)

    def _cells(self, entry: PlannedModel) -> list[Cell]:
        """The cells of a model: that of its failed training alone, if it failed."""
        if entry.train is not None and (failed := self.known.cells.get(entry.train.cell.id)):
            return [failed]
        first_tasks = entry.first_tasks(self.resume)
        tasks = (
            self.models[first_tasks[0].model].tasks if first_tasks else [t for t, _ in entry.cells]
        )
        found = ((task.cell.id, self.known.find(task.cell)) for task in tasks)
        older = STALE in KEPT_STATUSES[self.resume]
        return [cell for cell_id, cell in found if cell and (older or cell.id == cell_id)]

    def _report(self) -> None:
        counts = self.total, self.done, self.failed, len(self.running)
        self.session.reporter.tally(Tally(*counts, self._seconds_left()))

    def _seconds_left(self) -> float | None:
        """Estimate the time until the end; None if there is no estimate for one of the tasks."""
        left = 0.0
        for kind, count in self.left.items():
            seconds = self.durations.seconds(kind) if count > 0 else 0.0
            if seconds is None:
                return None
            elapsed_times = [
                watch.seconds for other, watch in self.running.values() if other == kind
            ]
            left += seconds * count - sum(min(seconds, elapsed) for elapsed in elapsed_times)
        return left / self.executor.workers
