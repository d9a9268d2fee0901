"""The cross product: data set x model x defense x seed x attack, one idempotent run of it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dmlbench.common.errors import CellError
from dmlbench.common.progress import Tally, duration
from dmlbench.storage import checkpoint
from dmlbench.storage.cell import Cell
from dmlbench.sweep.durations import Durations, Kind
from dmlbench.sweep.executors.base import Ending, Executor
from dmlbench.sweep.plan import cells, trained_weights
from dmlbench.sweep.session import Session, Stopwatch, fail
from dmlbench.sweep.status import DONE, FAILED, STALE, TAKEN, Known, PlannedModel
from dmlbench.sweep.tasks import CellTask, Combine, PlannedAttack, Task, Train


@dataclass
class _Model:
    """A model of the plan while the run lasts.

    Attributes:
        ready: tasks that can be begun.
        waiting: worst cases, until what they are drawn from is measured.
        open: tasks begun or ready.
    """

    entry: PlannedModel
    tasks: list[CellTask]
    ready: deque[Task] = field(default_factory=deque)
    waiting: list[Combine] = field(default_factory=list)
    open: int = 0

    def add(self, tasks: Iterable[Task]) -> None:
        """Tasks to do."""
        for task in tasks:
            if isinstance(task, Combine):
                self.waiting.append(task)
            else:
                self.ready.append(task)
                self.open += 1


@dataclass
class Scheduler:
    """One run over the entries of a plan.

    Attributes:
        attacks: of the run.
        known: the cells in the store; kept up to date.
        times: how long tasks take; kept up to date.
        resume: what to take from the store, a key of ``plan.TAKEN``.
    """

    entries: Sequence[PlannedModel]
    attacks: Sequence[PlannedAttack]
    session: Session
    executor: Executor
    known: Known
    times: Durations
    resume: str
    done: int = 0
    failed: int = 0
    total: int = 0
    ended: int = 0  # tasks of this run
    watch: Stopwatch = field(default_factory=Stopwatch)
    models: dict[str, _Model] = field(default_factory=dict)
    left: Counter[Kind] = field(default_factory=Counter)  # cells and trainings
    running: dict[str, tuple[Kind, Stopwatch]] = field(default_factory=dict)  # by their cell

    def run(self) -> list[Cell]:
        """Do what is left to do; the rows of all entries in their order, stored ones included.

        A task that fails is a failed row and the run goes on.

        Raises:
            UserError: no task can go on (a full disk, a corrupt checkpoint); what was finished
                stays.
        """
        for entry in self.entries:
            self._enter(entry)
        self._tell()
        while any(model.open for model in self.models.values()):
            while (held := self.executor.idle()) is not None and self._start(held):
                self._tell()
            for ending in self.executor.wait() if self.running else ():
                self._end(ending)
            self._tell()
        return [row for entry in self.entries for row in self._rows(entry)]

    @property
    def summary(self) -> str:
        """What the run came to, in a line."""
        text = f"{self.done} of {self.total} cells done, {self.failed} failed"
        if not self.ended:
            return f"{text}; there was nothing to do"
        return f"{text}; {self.ended} tasks took {duration(self.watch.seconds)}"

    def _enter(self, entry: PlannedModel) -> None:
        agenda, taken = entry.agenda(self.resume), TAKEN[self.resume]
        self.total += len(entry.cells)
        for task, status in entry.cells:
            if status in taken:
                self.done += status in (DONE, STALE)
                self.failed += status == FAILED
            elif agenda:
                self.left[self.times.kind(task)] += 1
            else:
                self.failed += 1  # its model has failed, and is not tried again
        if agenda:
            model = _Model(entry, [task for task, _ in entry.cells])
            model.add(agenda)
            self.models[agenda[0].model] = model
            if isinstance(agenda[0], Train):
                self.left[self.times.kind(agenda[0])] += 1
            self._release(model)

    def _start(self, held: str) -> bool:
        """Give the next task to a worker that holds a model; False if there is none.

        Of that model, else a training, which other tasks wait for, else of the model with most
        to do.
        """

        def rank(name: str) -> tuple[bool, bool, int]:
            ready = self.models[name].ready
            return name == held, isinstance(ready[0], Train), len(ready)

        name = max((n for n, m in self.models.items() if m.ready), key=rank, default=None)
        if name is None:
            return False
        task = self.models[name].ready.popleft()
        self.running[task.cell.id] = self.times.kind(task), Stopwatch()
        if self.resume != "never" and self.session.store.done(task.cell.id):
            self._close(task)  # another run in this folder has done it since it was planned
        else:
            self.executor.start(task)
        return True

    def _end(self, ending: Ending) -> None:
        """Take in what became of a task."""
        if ending.problem is None:
            self.times.add(self.times.kind(ending.task), ending.seconds)
        else:
            task, gone = ending.task, CellError(ending.problem)
            fail(self.session, task.cell, task.title, gone, Stopwatch.ended(ending.seconds))
        self._close(ending.task)

    def _close(self, task: Task) -> None:
        model = self.models[task.model]
        model.open -= 1
        del self.running[task.cell.id]
        self.ended += 1
        self.left[self.times.kind(task)] -= 1
        row = self.session.store.get(task.cell.id)
        if row is not None:
            self.known.cells[row.id] = row
        if isinstance(task, Train):
            self._trained(task, model, failed=row is not None)
        elif row is not None and row.ok:
            self.done += 1
        else:
            self.failed += 1
        self._release(model)

    def _trained(self, task: Train, model: _Model, failed: bool) -> None:
        """Put a model's cells in line, now that its weights give them an identity."""
        store, training = self.session.store, task.training
        statuses = [status for _, status in model.entry.cells]
        wanted = [status not in TAKEN[self.resume] for status in statuses]
        if failed:
            self._give_up([t for t, want in zip(model.tasks, wanted, strict=True) if want])
            return
        self.known.cells.pop(task.cell.id, None)
        manifest = checkpoint.verified_manifest(store.model_folder(training.id), training.facts)
        weights = trained_weights(task.training, manifest, store, self.session.compute.precision)
        planned = cells(weights, self.attacks, training.seed)
        for number, (cell, want) in enumerate(zip(planned, wanted, strict=True)):
            if want:
                model.tasks[number] = cell
                model.add([cell])

    def _release(self, model: _Model) -> None:
        """Put the worst cases in line when all that they are drawn from has ended."""
        if model.open:
            return
        waiting, model.waiting = model.waiting, []
        for task in waiting:
            rows = [self.known.cells.get(cell_id) for cell_id, _ in task.sources]
            if all(row is not None and row.ok for row in rows):
                model.ready.append(task)
                model.open += 1
            else:
                self._give_up([task])

    def _give_up(self, tasks: Sequence[CellTask]) -> None:
        """Count cells that cannot be measured since what they need has failed."""
        self.failed += len(tasks)
        self.left.subtract(self.times.kind(task) for task in tasks)

    def _rows(self, entry: PlannedModel) -> list[Cell]:
        if entry.train is not None and (row := self.known.cells.get(entry.train.cell.id)):
            return [row]
        agenda = entry.agenda(self.resume)
        tasks = self.models[agenda[0].model].tasks if agenda else [t for t, _ in entry.cells]
        return [row for task in tasks if (row := self.known.find(task.cell)) is not None]

    def _tell(self) -> None:
        counts = self.total, self.done, self.failed, len(self.running)
        self.session.reporter.tally(Tally(*counts, self._seconds_left()))

    def _seconds_left(self) -> float | None:
        """From past rows; None while there is nothing like a task that is left."""
        left = 0.0
        for kind, count in self.left.items():
            seconds = self.times.seconds(kind) if count > 0 else 0.0
            if seconds is None:
                return None
            begun = [watch.seconds for other, watch in self.running.values() if other == kind]
            left += seconds * count - sum(min(seconds, gone) for gone in begun)
        return left / self.executor.workers
