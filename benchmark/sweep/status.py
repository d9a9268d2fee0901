"""The status of planned cells in the store. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dmlbench.common.hashing import identity
from dmlbench.compute.device import Compute
from dmlbench.storage.cell import Cell, PlannedCell
from dmlbench.storage.checkpoint import Manifest
from dmlbench.storage.store import Store
from dmlbench.sweep.plan import cells
from dmlbench.sweep.policies import DONE, FAILED, KEPT_STATUSES, STALE, TO_DO
from dmlbench.sweep.tasks import CellTask, Combine, PlannedAttack, Task, Train, Weights, new_cell
from dmlbench.sweep.weights import trained_weights
from dmlbench.training.job import Training

# facts that may change while a cell stays the same measurement
_VERSION_FACTS = ("checkpoint", "measure_version", "attack_version", "attack_source")
_SCORE_ABOUT = ("attack", "suite", "queries", "precision", "eot")


class StoredCells:
    """The cells of a store: found by identity, or as an older version of the same measurement.

    Args:
        cells: the cells.
        complete: given a planned and a stored cell, false if the run wants more than is stored,
            such as further columns; the cell is then measured again.
    """

    def __init__(
        self,
        cells: Iterable[Cell],
        complete: Callable[[PlannedCell, Cell], bool] = lambda planned, stored: True,
    ) -> None:
        self._complete = complete
        self.cells = {cell.id: cell for cell in cells}
        measured = (cell for cell in self.cells.values() if cell.ok)
        by_age = sorted(measured, key=lambda cell: (cell.versions, cell.started))
        self._stale = {_identity_of_measurement(cell): cell for cell in by_age}

    def find(self, cell: PlannedCell) -> Cell | None:
        """Return the stored cell for a planned one; the newest stale one if there is no other."""
        return self.cells.get(cell.id) or self._stale.get(_identity_of_measurement(cell))

    def status(self, cell: PlannedCell) -> str:
        """Return the status of a planned cell; stale: of older weights or an older version."""
        found = self.find(cell)
        if found is None:
            return TO_DO
        if found.id != cell.id:
            return STALE
        if not found.ok:
            return FAILED
        return DONE if self._complete(cell, found) else TO_DO


@dataclass(frozen=True)
class PlannedModel:
    """A model of the plan: its training and its cells, each with its status in the store.

    Attributes:
        train: the task of training; None if the weights are not trained by this run.
        trained: the status of the training.
        cells: the task and the status of each cell. As long as the model is not trained, the
            identities are provisional.
    """

    train: Train | None
    trained: str
    cells: tuple[tuple[CellTask, str], ...]

    def first_tasks(self, resume: str) -> tuple[Task, ...]:
        """List the tasks that can start at once under the policy ``resume``.

        These are the training, or else the cells that must be measured.
        """
        wanted = tuple(task for task, status in self.cells if status not in KEPT_STATUSES[resume])
        if not wanted or self.train is None:
            return wanted
        if self.trained == DONE and resume != "never":
            return wanted
        return () if self.trained in KEPT_STATUSES[resume] else (self.train,)

    def measures(self, status: str, resume: str) -> bool:
        """Return True if a run with the policy ``resume`` measures the cells with this status."""
        return status not in KEPT_STATUSES[resume] and bool(self.first_tasks(resume))


def plan_training(
    training: Training,
    manifest: Manifest | None,
    attacks: Sequence[PlannedAttack],
    store: Store,
    known: StoredCells,
    compute: Compute,
    benign: Sequence[str],
) -> PlannedModel:
    """Find the status of a training (done if it has a manifest) and of each cell of its model."""
    weights = trained_weights(training, manifest, store, compute)
    train = Train(training, new_cell(training.facts, weights.about, {}))
    measured = plan_weights(weights, attacks, known, benign)
    if manifest is None and train.cell.id in known.cells:
        failed = tuple((task, FAILED) for task, _ in measured.cells)  # they cannot be measured
        return PlannedModel(train, FAILED, failed)
    return PlannedModel(train, TO_DO if manifest is None else DONE, measured.cells)


def plan_weights(
    weights: Weights,
    attacks: Sequence[PlannedAttack],
    known: StoredCells,
    benign: Sequence[str],
) -> PlannedModel:
    """Find the status of each cell of weights that exist; ``benign`` as in ``plan.measures``.

    A score does not stand for one whose attacks must be measured, or were measured since: they may
    come out otherwise.
    """
    tasks = cells(weights, attacks, benign)
    found = {task.cell.id: known.status(task.cell) for task in tasks}
    for task in tasks:
        if not isinstance(task, Combine) or found[task.cell.id] not in (DONE, STALE):
            continue
        score = known.find(task.cell)
        sources = [known.cells.get(one) for one, _ in task.sources]
        newer = any(score and one and one.started > score.started for one in sources)
        if newer or TO_DO in (found[one] for one, _ in task.sources):
            found[task.cell.id] = TO_DO
    return PlannedModel(None, DONE, tuple((task, found[task.cell.id]) for task in tasks))


def _identity_of_measurement(cell: PlannedCell) -> str:
    """The identity without versions; for a score, whose sources have some, by its row and name."""
    facts = {k: v for k, v in cell.facts.items() if k not in _VERSION_FACTS}
    if facts.pop("cells", None) is not None:
        facts |= {key: getattr(cell.about, key) for key in _SCORE_ABOUT}
    return identity(facts)
