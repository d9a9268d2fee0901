"""One run: plan it, do what is not stored yet, export. The command line and Python both call it.

session   what all tasks share: data, results folder, device   (``sweep.session``)
plan      which models, which cells                            (``sweep.plan``)
status    which of them are stored already                     (``sweep.status``)
scheduler hands the others to an executor, one after another   (``sweep.scheduler``)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dmlbench.analysis.csv_files import export
from dmlbench.common.errors import UserError
from dmlbench.common.files import write_atomically
from dmlbench.common.hashing import identity
from dmlbench.common.numbers import check_whole
from dmlbench.core import spec
from dmlbench.core.reference import is_own
from dmlbench.core.sources import is_typed
from dmlbench.datasets.base import Dataset
from dmlbench.models.base import canonical_model
from dmlbench.storage.cell import Cell
from dmlbench.sweep import plan, status
from dmlbench.sweep.durations import Durations, expected_device
from dmlbench.sweep.executors.base import Executor
from dmlbench.sweep.external_rows import joined_rows
from dmlbench.sweep.feasible import check_epochs, to_be_trained
from dmlbench.sweep.labels import in_its_place
from dmlbench.sweep.mixtures import Plan, warn_of_mixtures
from dmlbench.sweep.policies import EXECUTORS, KEPT_STATUSES
from dmlbench.sweep.scheduler import Scheduler
from dmlbench.sweep.session import Session, sound_manifest
from dmlbench.sweep.status import PlannedModel, StoredCells
from dmlbench.sweep.tasks import PlannedAttack, Weights
from dmlbench.training.job import Training


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of a run that change no number.

    Attributes:
        resume: which stored cells are taken as they are, a key of ``policies.KEPT_STATUSES``.
        shard: (i, n): only the i-th of n parts of the models, from 1; None: all.
        executor: ``local``, or ``ray`` for a Ray cluster.
        workers: processes at once; None: one, with Ray as many as fit.
        ray_gpus: GPUs that a task of Ray takes; None: one if there are any.
        cell_timeout: seconds after which a task is stopped; None: never.
    """

    resume: str = "retry-failed"
    shard: tuple[int, int] | None = None
    executor: str = "local"
    workers: int | None = None
    ray_gpus: float | None = None
    cell_timeout: float | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("resume", self.resume, tuple(KEPT_STATUSES)),
            ("executor", self.executor, EXECUTORS),
        ):
            if value not in known:
                raise UserError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if self.workers is not None:
            check_whole("workers", self.workers, 1)
        for name, number in (("ray_gpus", self.ray_gpus), ("cell_timeout", self.cell_timeout)):
            if number is not None and not (isinstance(number, (int, float)) and number > 0):
                raise UserError(f"{name} must be a number above 0, got {number!r}")
        if self.ray_gpus is not None and self.executor != "ray":
            raise UserError("--ray-gpus is for --executor ray")


def run(
    session: Session,
    models: Sequence[Training | Weights],
    attacks: Sequence[PlannedAttack],
    options: RunOptions = RunOptions(),
    asked: Mapping[str, Any] | None = None,
) -> list[Cell]:
    """Train and measure what is not stored yet, store it, and bring the CSVs up to date.

    Args:
        session: data, results folder, device and progress.
        models: trainings, whose models are trained unless they are stored, and weights that exist.
        attacks: what each model is measured under, beside the clean images.
        options: resuming, workers, shards.
        asked: the flags (or arguments) of the run by name. With them the run is written to
            ``runs/`` of the results folder, resolved, so that ``run --config`` can repeat it.

    Returns:
        The cells of every model, in the order of ``models``, stored ones included. A cell that
        failed has status ``failed`` and its error. Where images were handed in from outside, their
        cells follow, with the scores that include them.

    Raises:
        UserError: no task can go on (a full disk, a damaged checkpoint); finished cells stay.
    """
    known = read_store(session)
    in_its_place(session, known.cells)
    mine = of_shard(models, options)
    planned = plan_models(session, mine, attacks, known)

    @cache
    def elsewhere() -> list[PlannedModel]:
        others = [one for one in models if one not in mine]
        return plan_models(session, others, attacks, known, trained=False)

    warn_of_mixtures(Plan(planned, elsewhere, known, options.resume), session.store)
    check_epochs(to_be_trained(planned, options.resume))
    device = expected_device(session.compute, here=options.executor == "local")
    durations = Durations(device, known.cells.values(), session.store)
    defenses = [one.defense for one in models if isinstance(one, Training)]
    components: list[object] = [session.dataset, *defenses, *(one.model for one in models)]
    components += [one.attack for one in attacks]
    executor = _executor(session, options, components)
    idle = not any(model.first_tasks(options.resume) for model in planned)
    with nullcontext() if idle else executor:
        if asked is not None:
            write_config(
                session.store.root / "runs", _resolved(session.dataset, models, attacks, asked)
            )
        scheduler = Scheduler(planned, attacks, session, executor, known, durations, options.resume)
        cells = scheduler.run()
    session.reporter.say(scheduler.summary)
    session.store.check_in_place()
    joined = joined_rows(session.store, cells)
    export(session.store)
    return [*cells, *joined]


def read_store(session: Session, repair: bool = True) -> StoredCells:
    """The stored cells. A damaged one is named, and moved to ``quarantine/`` if ``repair``."""
    store = session.store
    cells, damaged = store.read()
    changed = store.changed_outcomes(cells)
    for path in (damaged := [*damaged, *changed]):
        fate = f"moved to {store.quarantine}" if repair else "left out"
        session.reporter.warn(
            f"{path} is damaged and {fate}; a run that needs its cell measures it again"
        )
    if repair:
        store.repair(damaged)
    sound = [cell for cell in store.whole(cells) if store.path(cell.id) not in changed]
    return StoredCells(sound, session.complete)


def plan_models(
    session: Session,
    models: Sequence[Training | Weights],
    attacks: Sequence[PlannedAttack],
    known: StoredCells,
    repair: bool = True,
    trained: bool = True,
) -> list[PlannedModel]:
    """Each model with its cells, and which of them are stored.

    A damaged model is named, and moved to ``quarantine/`` if ``repair``: it is trained again.

    Args:
        session: settings of the run.
        models: trainings, and weights that exist.
        attacks: what each model is measured under.
        known: the stored cells.
        repair: whether damaged models are moved.
        trained: False: plan as if no model were trained, which reads no file of weights.
    """
    return [
        status.plan_weights(one, attacks, known, session.dataset.benign)
        if isinstance(one, Weights)
        else status.plan_training(
            one,
            sound_manifest(session, one, repair) if trained else None,
            attacks,
            session.store,
            known,
            session.compute,
            session.dataset.benign,
        )
        for one in models
    ]


def of_shard(
    models: Sequence[Training | Weights], options: RunOptions
) -> Sequence[Training | Weights]:
    """The models of this process's shard; all of them if there is none."""
    trainings = [one for one in models if isinstance(one, Training)]
    return plan.shard(trainings, *options.shard) if options.shard else models


def _check_files(components: Iterable[object]) -> None:
    """UserError if worker processes cannot load a component: its class is in no file."""
    for cls in map(type, components):
        if not is_own(cls) and is_typed(cls):
            raise UserError(
                f"{cls.__name__} is in no file, so other processes cannot load it: put it into a "
                "file, or leave workers out"
            )


def _executor(session: Session, options: RunOptions, components: Iterable[object]) -> Executor:
    """The executor asked for; a limit of time needs a process that can be killed."""
    from dmlbench.sweep.executors.pool import Pool
    from dmlbench.sweep.executors.ray_cluster import RayCluster
    from dmlbench.sweep.executors.serial import Serial

    if options.executor == "ray" or options.cell_timeout is not None or (options.workers or 1) > 1:
        _check_files(components)
    if options.executor == "ray":
        return RayCluster(session, options.workers, options.ray_gpus, options.cell_timeout)
    if options.cell_timeout is None and (options.workers or 1) == 1:
        return Serial(session)
    return Pool(session, options.workers or 1, options.cell_timeout)


def _resolved(
    dataset: Dataset,
    models: Sequence[Training | Weights],
    attacks: Sequence[PlannedAttack],
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    """The flags of a run by name, with nothing left to a data set, a suite or a default."""
    trainings = [one for one in models if isinstance(one, Training)]
    first, shard = trainings[0], asked.get("shard")
    decided = {
        "defense": list(dict.fromkeys(spec.canonical(one.defense) for one in trainings)),
        "attack": [spec.canonical(one.attack) for one in attacks],
        "dataset": spec.canonical(dataset),
        "model": canonical_model(first.model),
        "recipe": spec.values(first.recipe),
        "seed": list(dict.fromkeys(one.seed for one in trainings)),
        "shard": shard and "{}/{}".format(*shard),
    }
    replaced = {"defenses", "attacks", "suites", "seeds", *decided}
    rest = {name: value for name, value in asked.items() if name not in replaced}
    plain = {n: str(v) if isinstance(v, Path) else v for n, v in (decided | rest).items()}
    unset = (None, False)  # by identity: a seed is 0
    return {
        name.replace("_", "-"): v for name, v in plain.items() if not any(v is u for u in unset)
    }


def write_config(folder: Path, values: Mapping[str, Any]) -> Path:
    """Write a run's resolved flags where ``run --config`` can read them again.

    The file is named by its content, so the same run again writes the same file.
    """
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=100)
    path = folder / f"{identity(values)}.yaml"
    if not path.exists():
        write_atomically(path, text.encode())
    return path
