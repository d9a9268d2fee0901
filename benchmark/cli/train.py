"""``dmlbench train``: train defenses, without attacking them."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from dmlbench.cli.numbers import Whole
from dmlbench.cli.options import options
from dmlbench.common.errors import EXIT_FAILED_CELLS, UserError


@click.command(
    epilog="\b\nExamples:\n"
    "  dmlbench train --defense hm:eta=32 --dataset fashion\n"
    "  dmlbench train --defense none:loss=proxy-anchor --recipe epochs=2,precision=bf16\n"
    "  torchrun --nproc-per-node 4 -m dmlbench train --defense hm --dataset fashion",
)
@options("defenses", "dataset", "model", "recipe", "seeds")
@click.option(
    "--validate",
    type=Whole(),
    default=1,
    show_default=True,
    metavar="K",
    help="Measure R@1 on the clean test split after every K epochs; 0: never. Does not change the "
    "weights.",
)
@click.option(
    "--tensorboard", is_flag=True, help="Also write event files for TensorBoard, beside log.jsonl."
)
@options("results", "data_root", "cache", "device", "threads", "json")
def train(
    defenses: tuple[str, ...],
    dataset: str,
    model: str | None,
    recipe: str,
    seeds: tuple[int, ...],
    validate: int,
    tensorboard: bool,
    as_json: bool,
    **places: Any,
) -> None:
    """Train defenses and store their checkpoints, which 'run' finds again.

    An interrupted training continues after its last finished epoch. Started by torchrun, all
    processes train one model together: each works on a part of every batch.
    """
    from dmlbench.compute.device import is_main_process, under_torchrun
    from dmlbench.core import spec
    from dmlbench.datasets.base import DATASETS
    from dmlbench.defenses.base import DEFENSES
    from dmlbench.models.base import parse_model
    from dmlbench.sweep.requests import parse_all, parse_recipe
    from dmlbench.sweep.session import open_session

    chosen = spec.parse(dataset, DATASETS)
    wanted = parse_all(defenses, DEFENSES)
    network = parse_model(model or chosen.protocol.model)
    trained = parse_recipe(chosen, recipe)
    with open_session(chosen, **places, torchrun=True) as s:
        from dmlbench.analysis.csv_files import export
        from dmlbench.sweep.plan import plan
        from dmlbench.sweep.session import sound_manifest
        from dmlbench.sweep.worker import with_advice
        from dmlbench.training import trainer

        monitoring = trainer.Monitoring(validate, tensorboard)
        manifests, failed = [], False
        for training in plan(chosen, s.digest, network, wanted, seeds, s.fitted(trained)):
            folder = s.store.model_folder(training.id)
            if is_main_process():
                sound_manifest(s, training)  # a damaged model is set aside
            try:
                manifest = trainer.train(
                    training, s.data, folder, s.compute, s.reporter, monitoring
                )
            except (UserError, KeyboardInterrupt):
                raise
            except BaseException as error:  # whatever a network or plugin raises
                problem = with_advice(error, training)
                if under_torchrun():  # the other processes wait for this one: torchrun ends them
                    raise UserError(str(problem)) from None
                failed = True
                s.reporter.warn(f"training {training.shown} failed: {problem}")
                continue
            manifests.append(manifest.as_json() | {"path": str(folder / manifest.checkpoint)})
            if is_main_process() and s.store.get(training.id) is not None:
                s.store.remove(training.id)  # the row of an earlier failure
                export(s.store)
    if is_main_process():
        _print(manifests, as_json)
    if failed:
        sys.exit(EXIT_FAILED_CELLS)


def _print(manifests: list[dict[str, Any]], as_json: bool) -> None:
    from dmlbench.core.naming import parameters, told_apart

    if as_json:
        click.echo(json.dumps(manifests, indent=1))
        return
    names = told_apart(
        [one["label"] for one in manifests], [parameters(one["defense"]) for one in manifests]
    )
    for manifest, name in zip(manifests, names, strict=True):
        last = manifest["history"][-1]
        recall = f", R@1 {last['R@1']:.1f}" if last.get("R@1") is not None else ""
        click.echo(f"{name}: {manifest['path']}{recall}")
