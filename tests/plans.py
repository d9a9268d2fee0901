"""Plans of a tiny sweep, and an executor that invents its rows, for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec.structs import replace

from dmlbench.attacks.base import ATTACKS
from dmlbench.common.files import write_json
from dmlbench.common.hashing import file_sha256
from dmlbench.compute.device import Compute
from dmlbench.core import spec
from dmlbench.datasets.fashion import FashionMini
from dmlbench.defenses.base import DEFENSES
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.metrics.names import BENIGN
from dmlbench.models.base import parse_model
from dmlbench.storage import checkpoint
from dmlbench.storage.cell import Cell
from dmlbench.storage.store import Store
from dmlbench.sweep import plan, status
from dmlbench.sweep.durations import Durations
from dmlbench.sweep.executors.base import FinishedTask
from dmlbench.sweep.scheduler import Scheduler
from dmlbench.sweep.session import Session
from dmlbench.sweep.status import PlannedModel, StoredCells
from dmlbench.sweep.tasks import Task, Train
from dmlbench.training.job import Training
from tests.cells import MADE, failing, manifest
from tests.reporters import Silent

CARD = FashionMini().protocol


SUITE = [ATTACKS.get(name)() for name in ("ca+", "es", "ltm", "gtm")]


PLANNED = plan.planned_attacks(SUITE, CARD.threat)


def trainings(seeds: Any = (0,), defenses: Any = ("none", "est", "hm")) -> list[Training]:
    chosen = [spec.parse(name, DEFENSES) for name in defenses]
    network = parse_model(CARD.model)
    return plan.plan(FashionMini(), "d" * 64, network, chosen, list(seeds), CARD.recipe)


def row(task: Any, ok: bool = True, seconds: float = 2.0) -> Cell:
    """A stored row of a planned cell."""
    if not ok:
        return failing(task.cell)
    made = replace(MADE, device="cpu: x")
    metrics = dict.fromkeys(task.cell.columns, Estimate(1.0, 0.0, 2.0, 4))
    return task.cell.measured(metrics, {}, 0.0, seconds, made)


class Fake:
    """An executor that invents rows: those of ``bad`` fail, those of ``lost`` leave none."""

    workers = 1

    def __init__(self, store: Store, bad: Any = (), lost: Any = ()) -> None:
        self.store, self.bad, self.lost = store, bad, lost
        self.queue: list[Task] = []
        self.model = ""
        self.did: list[str] = []

    def idle(self) -> str | None:
        return self.model if not self.queue else None

    def start(self, task: Task) -> None:
        self.queue.append(task)
        self.model = task.model

    def wait(self) -> list[FinishedTask]:
        task = self.queue.pop()
        name = task.cell.about.attack or task.cell.facts["kind"]
        self.did.append(name)
        if name in self.lost:
            return [FinishedTask(task, 3.0, "its worker died")]
        if isinstance(task, Train) and name not in self.bad:
            folder = self.store.model_folder(task.model)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / checkpoint.WEIGHTS).write_bytes(task.model.encode())
            sha = file_sha256(folder / checkpoint.WEIGHTS)
            facts = {"training": task.training.facts, "training_id": task.training.id}
            cost = task.training.defense.training_cost
            made = manifest(sha256=sha, label="N/A", seconds=8.0, training_cost=cost, **facts)
            write_json(folder / checkpoint.MANIFEST, made.as_json())
        elif name in self.bad:
            failed = row(task, ok=False)
            if self.store.done(task.cell.id) is None:
                self.store.put(failed)
            return [FinishedTask(task, 1.0, failure=failed)]
        else:
            self.store.put(row(task), {"x": np.zeros(4)})
        return [FinishedTask(task, 1.0)]


def assessed(store: Store, found: list[Training]) -> tuple[list[PlannedModel], StoredCells]:
    known = StoredCells(store.whole(store.read()[0]))
    return [planned(store, job, known) for job in found], known


def planned(store: Store, job: Training, known: StoredCells) -> PlannedModel:
    manifest = checkpoint.verified_manifest(store.model_folder(job.id), job.facts)
    return status.plan_training(job, manifest, PLANNED, store, known, Compute(), BENIGN)


def ran(
    store: Store, found: list[Training], resume: str = "retry-failed", tell: Any = id, **how: Any
) -> Any:
    entries, known = assessed(store, found)
    executor = Fake(store, **how)
    session = Session(FashionMini(), None, None, store, Compute("cpu"), Silent())
    scheduler = Scheduler(
        entries, PLANNED, session, executor, known, Durations("", [], store), resume
    )
    scheduler.session.reporter.tally = tell  # type: ignore[method-assign]
    return scheduler, scheduler.run(), executor.did
