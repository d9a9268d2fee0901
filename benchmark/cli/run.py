"""``dmlbench run``: train defenses, attack them, write results and a board."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dmlbench.cli.config import refuse_code, use_config
from dmlbench.cli.numbers import Real, Whole
from dmlbench.cli.options import PATH, options
from dmlbench.cli.shared import check_outputs, finish
from dmlbench.sweep.policies import EXECUTORS, KEPT_STATUSES

if TYPE_CHECKING:
    from dmlbench.sweep.run import RunOptions
    from dmlbench.sweep.session import Session
    from dmlbench.sweep.tasks import PlannedAttack
    from dmlbench.training.job import Training


class _Shard(click.ParamType[tuple[int, int]]):
    """``i/n`` as a pair of numbers."""

    name = "i/n"

    def convert(self, value: Any, param: Any, context: Any) -> tuple[int, int]:
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", value)
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
    "\b\nStored results that --resume takes instead of measuring again (a cell is one model under\n"
    "one attack; a half-trained model continues after its last epoch):\n"
    "  retry-failed  cells that succeeded\n"
    "  only-missing  cells that failed, too\n"
    "  always        and cells of replaced weights, or of an older version of a definition\n"
    "  never         nothing: models are trained and measured again\n\n"
    "\b\nExit codes: 0 fine, 1 some cells failed, 2 usage or input error, 130 and 143 stopped by\n"
    "SIGINT and SIGTERM.",
)
@click.option(
    "--config",
    type=PATH,
    multiple=True,
    is_eager=True,
    expose_value=False,
    callback=use_config,
    metavar="FILE",
    help="YAML file of these options by name (defense: [est, hm]). Options given here win over it.",
)
@options("defenses", "attacks", "suites", "queries", "recalls", "eot")
@options("dataset", "model", "recipe", "seeds")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Only print what would be done, and the expected time. It refuses what the run would "
    "refuse, and downloads nothing.",
)
@click.option(
    "--resume",
    type=click.Choice(tuple(KEPT_STATUSES)),
    default="retry-failed",
    show_default=True,
    help="Which stored results to take instead of measuring again, see below.",
)
@click.option(
    "--workers",
    type=Whole(1, 1024),
    help="Processes that work at once. They take the GPUs in turn and share the CPU threads (or "
    "have --threads each). Default: 1; with Ray as many as fit.",
)
@click.option(
    "--shard",
    type=_Shard(),
    help="Do only the i-th of n parts of the models, to split a run over machines.",
)
@click.option(
    "--executor",
    type=click.Choice(EXECUTORS),
    default="local",
    show_default=True,
    help="local: processes on this machine. ray: tasks on a running Ray cluster, else on one that "
    "is started here.",
)
@click.option(
    "--ray-gpus",
    type=Real(),
    help="GPUs for each task of Ray; with 0.5 two tasks share one. Default: 1 if there are any.",
)
@click.option(
    "--cell-timeout",
    type=Real(min_open=True),
    metavar="SECONDS",
    help="Stop a training or a measurement that takes longer; its row is marked as failed.",
)
@options("allow_code", "results", "leaderboards", "data_root", "cache")
@options("device", "batch_size", "threads", "precision", "json")
def run(
    defenses: tuple[str, ...],
    attacks: tuple[str, ...],
    suites: tuple[str, ...],
    queries: int | None,
    recalls: bool,
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
    allow_code: bool,
    results: Path,
    leaderboards: Path,
    as_json: bool,
    **places: Any,
) -> None:
    """Train each defense, measure it clean and under each attack, and write CSV and a board.

    The undefended model is always trained and measured too. Results that are stored are not
    computed again: a run that was stopped continues when it is started again, and several runs
    may share a results folder.
    """
    from dmlbench.attacks.base import ATTACKS
    from dmlbench.core import spec
    from dmlbench.datasets.base import DATASETS
    from dmlbench.defenses.base import DEFENSES
    from dmlbench.models.base import MODELS, parse_model
    from dmlbench.sweep import plan
    from dmlbench.sweep.requests import parse_all, parse_attacks, parse_recipe
    from dmlbench.sweep.run import RunOptions, run
    from dmlbench.sweep.session import open_session

    if not allow_code:
        refuse_code(defenses=DEFENSES, attacks=ATTACKS, dataset=DATASETS, model=MODELS)
    run_options = RunOptions(
        resume=resume,
        shard=shard,
        executor=executor,
        workers=workers,
        ray_gpus=ray_gpus,
        cell_timeout=cell_timeout,
    )
    chosen = spec.parse(dataset, DATASETS)
    wanted = [spec.parse("none", DEFENSES), *parse_all(defenses, DEFENSES)]
    asked = parse_attacks(attacks, suites)
    planned = plan.planned_attacks(asked, chosen.protocol.threat, queries, recalls)
    network = parse_model(model or chosen.protocol.model)
    settings = parse_recipe(chosen, recipe)
    check_outputs(results, leaderboards, writing=not dry_run)
    with open_session(chosen, results, **places, writing=not dry_run) as session:
        session.check_queries(queries)
        trainings = plan.plan(
            chosen, session.digest, network, wanted, seeds, session.fitted(settings)
        )
        if dry_run:
            _show(session, trainings, planned, run_options, as_json)
            return
        try:
            cells = run(session, trainings, planned, run_options, asked=_flags())
        except KeyboardInterrupt as stop:
            if resume == "never":  # it would begin anew
                stop.add_note(
                    "run again without --resume never to go on: what was not reached keeps the "
                    "numbers that it had before"
                )
            raise
    finish(cells, chosen.card.name, results, leaderboards, as_json)


def _flags() -> dict[str, Any]:
    """The flags of this command by name, but for those that decide what is printed."""
    given = click.get_current_context().params
    left_out = ("dry_run", "as_json", "allow_code")
    return {name: value for name, value in given.items() if name not in left_out}


def _show(
    session: Session,
    trainings: Sequence[Training],
    attacks: Sequence[PlannedAttack],
    run_options: RunOptions,
    as_json: bool,
) -> None:
    """Print the output of a dry run."""
    from dmlbench.cli.dry_run import lines, preview, price, summary
    from dmlbench.sweep.durations import Durations, expected_device
    from dmlbench.sweep.feasible import check_feasible, to_be_trained
    from dmlbench.sweep.run import of_shard, plan_models, read_store

    known = read_store(session, repair=False)
    models = plan_models(session, of_shard(trainings, run_options), attacks, known, repair=False)
    here = run_options.executor == "local"
    if any(model.first_tasks(run_options.resume) for model in models):
        check_feasible(session, to_be_trained(models, run_options.resume), here)
    device = expected_device(session.compute, here)
    durations = Durations(device, known.cells.values(), session.store)
    records = preview(models, run_options.resume, durations)
    if as_json:
        click.echo(json.dumps(records, indent=1))
    else:
        threat = session.dataset.protocol.threat
        end = (price(records, threat), summary(records, run_options.workers or 1, device))
        click.echo("\n".join([*lines(records), *end]))
