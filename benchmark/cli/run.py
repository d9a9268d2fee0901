"""``dmlbench run``: train defenses, attack them, write results and a board."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dmlbench.cli.config import use_config, write_config
from dmlbench.cli.options import PATH, options
from dmlbench.cli.shared import (
    check_queries,
    finish,
    open_session,
    open_store,
    parse_all,
    parse_attacks,
    parse_recipe,
)
from dmlbench.common.errors import UserError

if TYPE_CHECKING:
    from dmlbench.datasets.base import Dataset
    from dmlbench.sweep.executors.base import Executor
    from dmlbench.sweep.session import Session
    from dmlbench.sweep.tasks import PlannedAttack
    from dmlbench.training.job import Training

RESUME = ("retry-failed", "only-missing", "always", "never")


class _Shard(click.ParamType[tuple[int, int]]):
    """``i/n``, as a pair."""

    name = "i/n"

    def convert(self, value: Any, param: Any, context: Any) -> tuple[int, int]:
        match = re.fullmatch(r"(\d+)/(\d+)", value)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            self.fail(f"{value!r} is not i/n with 1 <= i <= n, e.g. 1/8", param, context)
        return int(match[1]), int(match[2])


@click.command(
    epilog="\b\nExamples:\n"
    "  dmlbench run --defense hm --attack ca+\n"
    "  dmlbench run --defense hm:source=random,ics=0 --attack ca+:w=5 --attack ca-\n"
    "  dmlbench run --defense all --suite strict --suite ers --dataset fashion --seed 0 --seed 1\n"
    "  dmlbench run --config sweep.yaml --workers 4 --threads 2\n"
    "  dmlbench run --config sweep.yaml --shard $SLURM_ARRAY_TASK_ID/8   # sbatch --array=1-8\n\n"
    "\b\nWhat --resume takes from the results folder (a model half trained goes on at its last "
    "epoch):\n"
    "  retry-failed  cells that succeeded\n"
    "  only-missing  failed cells too\n"
    "  always        and cells of replaced weights or of an older version of a definition\n"
    "  never         nothing: models are trained and measured again\n\n"
    "\b\nExit codes: 0 fine, 1 some cells failed, 2 usage or input error, 130 and 143 stopped by\n"
    "SIGINT and SIGTERM.",
)
@click.option(
    "--config",
    type=PATH,
    is_eager=True,
    expose_value=False,
    callback=use_config,
    metavar="FILE",
    help="A sweep in YAML: these flags by name (defense: [est, hm]). Flags win over it.",
)
@options("defenses", "attacks", "suites", "queries", "dataset", "model", "recipe", "seeds")
@click.option("--dry-run", is_flag=True, help="Print the cells and what they may take; do nothing.")
@click.option(
    "--resume",
    type=click.Choice(RESUME),
    default=RESUME[0],
    show_default=True,
    help="What to take from the results folder, see below.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes at once: GPUs in turn, CPU threads divided unless --threads names how many "
    "each has. Default: 1; with Ray as many as fit.",
)
@click.option("--shard", type=_Shard(), help="Only the i-th of n parts of the models.")
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray: a task a cell on the Ray cluster that is there, else on one made here.",
)
@click.option(
    "--ray-gpus",
    type=click.FloatRange(min=0),
    help="GPUs a task of Ray takes; 0.5 lets two share one. Default: 1 if there are any.",
)
@click.option(
    "--cell-timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Stop a training or a cell that takes longer; it is a failed row.",
)
@options("results", "leaderboards", "data_root", "cache")
@options("device", "batch_size", "threads", "precision", "json")
def run(
    defenses: tuple[str, ...],
    attacks: tuple[str, ...],
    suites: tuple[str, ...],
    queries: int | None,
    dataset: str,
    model: str | None,
    recipe: str,
    seeds: tuple[int, ...],
    dry_run: bool,
    resume: str,
    workers: int | None,
    shard: tuple[int, int] | None,
    executor: str,
    ray_gpus: float | None,
    cell_timeout: float | None,
    as_json: bool,
    **places: Any,
) -> None:
    """Train each defense, measure it clean and under each attack, and write CSV and a board.

    The undefended model is always trained and measured beside the defenses. What is already
    stored is not done again, so a run that was stopped goes on when it is given again, and any
    number of runs may share a results folder.
    """
    from dmlbench.cli.dry_run import preview
    from dmlbench.core import spec
    from dmlbench.datasets.base import DATASETS
    from dmlbench.defenses.base import DEFENSES
    from dmlbench.models.base import parse_model
    from dmlbench.sweep import plan, status
    from dmlbench.sweep.durations import Durations, likely_device
    from dmlbench.sweep.scheduler import Scheduler

    if ray_gpus is not None and executor != "ray":
        raise UserError("--ray-gpus is for --executor ray")
    chosen = spec.parse(dataset, DATASETS)
    wanted = [spec.parse("none", DEFENSES), *parse_all(defenses, DEFENSES)]
    hostile = plan.planned_attacks(parse_attacks(attacks, suites), chosen.protocol.threat, queries)
    network = parse_model(model or chosen.protocol.model)
    trained = parse_recipe(chosen, recipe)

    with open_session(chosen, **places, writing=not dry_run) as session:
        check_queries(queries, session)
        trainings = plan.plan(chosen, session.digest, network, wanted, seeds, trained)
        mine = trainings if shard is None else plan.shard(trainings, *shard)
        known = open_store(session, repair=not dry_run)
        precision = session.compute.precision
        entries = [status.assess(one, hostile, session.store, known, precision) for one in mine]
        times = Durations(likely_device(session.compute), known.cells.values(), session.store)
        if dry_run:
            _show(preview(entries, resume, times), workers or 1, times.device, as_json)
            return
        doer = _executor(session, executor, workers, ray_gpus, cell_timeout)
        idle = not any(entry.agenda(resume) for entry in entries)
        with nullcontext() if idle else doer:
            asked = _resolved(chosen, trainings, hostile, click.get_current_context().params)
            write_config(session.store.root / "runs", asked)
            matrix = Scheduler(entries, hostile, session, doer, known, times, resume)
            cells = matrix.run()
        session.reporter.say(matrix.summary)
    finish(cells, session, places["leaderboards"], as_json)


def _show(records: Sequence[dict[str, Any]], workers: int, device: str, as_json: bool) -> None:
    """Print what a run would do."""
    from dmlbench.cli.dry_run import lines, summary

    if as_json:
        click.echo(json.dumps(records, indent=1))
    else:
        click.echo("\n".join([*lines(records), summary(records, workers, device)]))


def _executor(
    session: Session,
    kind: str,
    workers: int | None,
    gpus: float | None,
    limit: float | None,
) -> Executor:
    """What was asked for; a process that can be killed where there is a limit of time."""
    from dmlbench.sweep.executors.pool import Pool
    from dmlbench.sweep.executors.ray_cluster import RayCluster
    from dmlbench.sweep.executors.serial import Serial

    if kind == "ray":
        return RayCluster(session, workers, gpus, limit)
    if limit is None and (workers or 1) == 1:
        return Serial(session)
    return Pool(session, workers or 1, limit)


def _resolved(
    dataset: Dataset,
    trainings: Sequence[Training],
    hostile: Sequence[PlannedAttack],
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    """The flags of a run by name, with nothing left to a data set, a suite or a default."""
    from dmlbench.core import spec
    from dmlbench.models.base import canonical_model

    training, shard = trainings[0], asked["shard"]
    decided = {
        "defense": list(dict.fromkeys(spec.canonical(one.defense) for one in trainings)),
        "attack": [spec.canonical(one.attack) for one in hostile],
        "dataset": spec.canonical(dataset),
        "model": canonical_model(training.model),
        "recipe": spec.values(training.recipe),
        "seed": list(asked["seeds"]),
        "shard": shard and "{}/{}".format(*shard),
    }
    replaced = {"defenses", "attacks", "suites", "seeds", "dry_run", "as_json", *decided}
    rest = {name: value for name, value in asked.items() if name not in replaced}
    plain = {n: str(v) if isinstance(v, Path) else v for n, v in (decided | rest).items()}
    return {name.replace("_", "-"): v for name, v in plain.items() if v is not None}
