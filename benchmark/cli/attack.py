"""``dmlbench attack``: measure trained weights, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dmlbench.cli.numbers import Whole
from dmlbench.cli.options import DATASET, PATH, once, options
from dmlbench.cli.shared import check_outputs, finish, weights_of


class _Saved(click.ParamType[int | None]):
    """A number of pictures, or ``all`` (None)."""

    name = "n|all"

    def convert(self, value: Any, param: Any, context: Any) -> int | None:
        if value == "all":
            return None
        if not str(value).isascii() or not str(value).isdecimal():
            self.fail(f"{value!r} is neither a whole number nor 'all'", param, context)
        return Whole().convert(value, param, context)


@click.command(
    epilog="\b\nExamples:\n"
    "  dmlbench attack --zoo fashion-mini/hm --suite auto --queries 100\n"
    "  dmlbench attack --checkpoint results/models/ID\n"
    "  dmlbench attack --checkpoint mine.pth --model nets.py:make --attack radius --queries 50\n"
    "  dmlbench attack --model mobilenet_v2:head=none,weights=w.pt --dataset grocery --attack es",
)
@click.option(
    "--checkpoint",
    type=PATH,
    metavar="PATH",
    help="A trained model's folder or its manifest, which says all the rest; or a file of weights: "
    "safetensors, a PyTorch state dict (also under 'state_dict' or 'model', and with any prefix), "
    "or a Lightning checkpoint (as RobRank's code writes). Without one, --model is measured as it "
    "is published.",
)
@options("zoo")
@once(
    "--model",
    help="Network that the weights are of, e.g. resnet18, or a function or class of your own, "
    "nets.py:make or MODULE:NAME. Default: the manifest's, else the data set's.",
)
@click.option(
    "--label",
    help="Name of the model in tables. Default: the one that it has in --results already, on any "
    "data set, else that in its manifest, else the file name; without a checkpoint 'none "
    "(pretrained)', 'none (untrained)' if its weights are random, or 'none (as built)' of your own "
    "code.",
)
@options("attacks", "suites", "queries", "recalls", "eot")
@once(
    "--dataset",
    help="Data set to measure on; 'dmlbench list datasets' shows all. Default: the one in the "
    f"model's manifest, else {DATASET}.",
)
@click.option(
    "--training-seed",
    type=Whole(),
    help="Seed that --checkpoint was trained with, where no manifest says it. Models of one "
    "--label that differ in it are one row, a mean over seeds. Default: 0.",
)
@click.option(
    "--seed",
    type=Whole(),
    help="Seed that decides the targets of the attacks. Default: that of the training, as in "
    "'run'. With another one, columns say so: "
    "CA+ (attack_seed=5).",
)
@click.option(
    "--save-adversarial",
    "saved",
    type=_Saved(),
    default=0,
    metavar="N|all",
    help="Also write a picture of each of the first N attacked queries: clean image, perturbation, "
    "adversarial image, and the top 5 before and after. all: the adversarial images themselves, "
    "as adversarial/CELL.npz in the results, exactly as they were measured.",
)
@options("allow_code", "results", "leaderboards", "data_root", "cache")
@options("device", "batch_size", "threads", "precision", "json")
def attack(
    checkpoint: Path | None,
    zoo: str | None,
    model: str | None,
    label: str | None,
    attacks: tuple[str, ...],
    suites: tuple[str, ...],
    queries: int | None,
    recalls: bool,
    dataset: str | None,
    training_seed: int | None,
    seed: int | None,
    saved: int | None,
    allow_code: bool,
    results: Path,
    leaderboards: Path,
    as_json: bool,
    **places: Any,
) -> None:
    """Measure a trained model, on clean images and under attacks, without training.

    Without --attack and --suite the attacks are those of suite strict.
    """
    from dmlbench.common.errors import UserError
    from dmlbench.core import spec
    from dmlbench.datasets.base import DATASETS
    from dmlbench.models.base import parse_model
    from dmlbench.sweep.labels import check_label, in_its_row
    from dmlbench.sweep.requests import parse_attacks
    from dmlbench.sweep.session import open_session
    from dmlbench.sweep.weights import checkpoint_weights, initial_weights, trained_on

    check_label(label)
    checkpoint = weights_of(checkpoint, zoo)
    known = trained_on(checkpoint, allow_code) if checkpoint and not dataset else ""
    chosen = spec.parse(dataset or known or DATASET, DATASETS)
    asked = parse_attacks(attacks, suites or (() if attacks else ("strict",)))
    network = parse_model(model) if model else None
    if checkpoint is None and network is None:
        raise UserError(
            "name the weights (--checkpoint FILE, --zoo NAME), or a network that is measured as it "
            "is published (--model mobilenet_v2:head=none)"
        )
    if checkpoint is None and training_seed is not None:
        raise UserError("--training-seed is for the weights of --checkpoint")
    check_outputs(results, leaderboards)
    with open_session(
        chosen, results, **places, keep=saved or 0, save_images=saved is None
    ) as session:
        from dmlbench.sweep import plan
        from dmlbench.sweep.run import run

        session.check_queries(queries)
        if checkpoint is not None:
            weights = checkpoint_weights(
                chosen,
                session.digest,
                network,
                checkpoint,
                label=label,
                seed=seed,
                compute=session.compute,
                allow_code=allow_code,
                training_seed=training_seed,
            )
        else:
            assert network is not None
            weights = initial_weights(
                *(chosen, session.data, network, label, seed or 0, session.compute)
            )
        planned = plan.planned_attacks(asked, chosen.protocol.threat, queries, recalls)
        weights = in_its_row(session, weights, label, training_seed, seed)
        cells = run(session, [weights], planned)
        drawn = []
        if saved:
            from dmlbench.sweep.pictures import draw_attacks  # matplotlib takes a second

            found = {cell.id for cell in cells if cell.ok}
            tasks = plan.cells(weights, planned, chosen.benign)
            drawn = draw_attacks(session, [task for task in tasks if task.cell.id in found])
    finish(cells, chosen.card.name, results, leaderboards, as_json)
    if drawn and not as_json:
        click.echo(f"Drawn: {len(drawn)} pictures in {drawn[0].parent.parent}")
    if saved is None and not as_json:
        click.echo(f"Saved: the images of each attack in {results / 'adversarial'}/CELL.npz")
