"""What of a plan is there, and what a policy of ``--resume`` makes of it. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dmlbench.common.hashing import identity
from dmlbench.storage.checkpoint import read_manifest
from dmlbench.storage.store import Cell, Store
from dmlbench.sweep.plan import cells, trained_weights
from dmlbench.sweep.tasks import CellTask, PlannedAttack, Task, Train, Weights, new_cell
from dmlbench.training.job import Training

DONE, FAILED, STALE, TO_DO = "done", "failed", "stale", "to do"
TAKEN = {  # what each policy of --resume takes from the store
    "retry-failed": (DONE,),
    "only-missing": (DONE, FAILED),
    "always": (DONE, FAILED, STALE),
    "never": (),
}
# what makes a cell stale
_MUTABLE = ("checkpoint", "measure_version", "attack_version", "attack_source")


class Known:
    """The cells of a store by identity, and by what they were before their definition changed."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        self.cells = {cell["id"]: cell for cell in cells}
        self._stale = {_lasting(c): c for c in self.cells.values() if c["status"] == "ok"}

    def find(self, cell: Cell) -> Cell | None:
        """The row of a planned cell, a stale one if there is no other."""
        return self.cells.get(cell["id"]) or self._stale.get(_lasting(cell))

    def status(self, cell: Cell) -> str:
        """done, failed, stale (of replaced weights or an older definition) or to do."""
        found = self.find(cell)
        if found is None:
            return TO_DO
        if found["id"] != cell["id"]:
            return STALE
        return DONE if found["status"] == "ok" else FAILED


@dataclass(frozen=True)
class PlannedModel:
    """A model of the plan: its training and its cells, with what the store knows of each.

    Attributes:
        train: None for weights from elsewhere.
        trained: status of the training.
        cells: tasks and their status; of an untrained model they have no identity yet.
    """

    train: Train | None
    trained: str
    cells: tuple[tuple[CellTask, str], ...]

    def agenda(self, resume: str) -> tuple[Task, ...]:
        """What can be begun with under that policy: the training, or what is not measured."""
        wanted = tuple(task for task, status in self.cells if status not in TAKEN[resume])
        if not wanted or self.train is None:
            return wanted
        if resume == "never":
            return (replace(self.train, afresh=True),)
        if self.trained == DONE:
            return wanted
        return () if self.trained in TAKEN[resume] else (self.train,)

    def does(self, status: str, resume: str) -> bool:
        """Whether a run under that policy does the cells of a status."""
        return status not in TAKEN[resume] and bool(self.agenda(resume))


def assess(
    training: Training, attacks: Sequence[PlannedAttack], store: Store, known: Known, precision: str
) -> PlannedModel:
    """A training with its status and of each cell.

    Raises:
        UserError: its weights are there but are not what their manifest says.
    """
    manifest = read_manifest(store.model_folder(training.id), training.facts)
    weights = trained_weights(training, manifest, store, precision)
    train = Train(training, new_cell(training.facts, weights.about, {}))
    measured = planned_model(weights, attacks, training.seed, known)
    if manifest is None and train.cell["id"] in known.cells:
        failed = tuple((task, FAILED) for task, _ in measured.cells)  # they share its fate
        return PlannedModel(train, FAILED, failed)
    return PlannedModel(train, TO_DO if manifest is None else DONE, measured.cells)


def planned_model(
    weights: Weights, attacks: Sequence[PlannedAttack], seed: int, known: Known
) -> PlannedModel:
    """Weights that are there, with the status of each cell."""
    tasks = cells(weights, attacks, seed)
    return PlannedModel(None, DONE, tuple((task, known.status(task.cell)) for task in tasks))


def _lasting(cell: Cell) -> str:
    return identity({k: v for k, v in cell["facts"].items() if k not in _MUTABLE})
