"""``dmlbench attack``: measure trained weights, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dmlbench.cli.options import DATASET, PATH, options
from dmlbench.cli.shared import check_outputs, finish


@click.command(
    epilog="\b\nExamples:\n"
    "  dmlbench attack --checkpoint results/models/ID\n"
    "  dmlbench attack --model my.nets:resnet --checkpoint w.pt --dataset fashion --attack es",
)
@click.option(
    "--checkpoint",
    required=True,
    type=PATH,
    metavar="PATH",
    help="A trained model's folder or its manifest, which says all the rest; or a file of weights: "
    "safetensors, a PyTorch state dict (also under 'state_dict' or 'model', and with any prefix), "
    "or a Lightning checkpoint (as RobRank's code writes).",
)
@click.option(
    "--model",
    metavar="SPEC",
    help="Network that the weights are of, e.g. resnet18, or a function of your own, "
    "MODULE:FACTORY. Default: the manifest's, else the data set's.",
)
@click.option(
    "--label",
    help="Name of the model in tables. Default: the one in its manifest, else the file name.",
)
@options("attacks", "suites", "queries")
@click.option(
    "--dataset",
    metavar="SPEC",
    help="Data set to measure on; 'dmlbench list datasets' shows all. Default: the one in the "
    f"model's manifest, else {DATASET}.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed that decides the targets of the attacks.",
)
@click.option(
    "--save-adversarial",
    "pictures",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Also write a picture of each of the first N attacked queries: clean image, perturbation, "
    "adversarial image, and the top 5 before and after.",
)
@options("results", "leaderboards", "data_root", "cache")
@options("device", "batch_size", "threads", "precision", "json")
def attack(
    checkpoint: Path,
    model: str | None,
    label: str | None,
    attacks: tuple[str, ...],
    suites: tuple[str, ...],
    queries: int | None,
    dataset: str | None,
    seed: int,
    pictures: int,
    results: Path,
    leaderboards: Path,
    as_json: bool,
    **places: Any,
) -> None:
    """Measure a trained model, on clean images and under attacks, without training.

    Without --attack and --suite the attacks are those of suite strict.
    """
    from dmlbench.core import spec
    from dmlbench.datasets.base import DATASETS
    from dmlbench.models.base import parse_model
    from dmlbench.sweep.requests import parse_attacks
    from dmlbench.sweep.session import open_session
    from dmlbench.sweep.weights import checkpoint_weights, trained_on

    chosen = spec.parse(dataset or trained_on(checkpoint) or DATASET, DATASETS)
    asked = parse_attacks(attacks, suites or (() if attacks else ("strict",)))
    network = parse_model(model) if model else None
    check_outputs(results, leaderboards)
    with open_session(chosen, results, **places, keep=pictures) as session:
        from dmlbench.sweep import plan
        from dmlbench.sweep.pictures import draw_attacks
        from dmlbench.sweep.run import run

        session.check_queries(queries)
        weights = checkpoint_weights(
            *(chosen, session.digest, network, checkpoint, label, seed, places["precision"])
        )
        planned = plan.planned_attacks(asked, chosen.protocol.threat, queries)
        cells = run(session, [weights], planned)
        drawn = draw_attacks(session, plan.cells(weights, planned)) if pictures else []
    finish(cells, chosen.card.name, results, leaderboards, as_json)
    if drawn and not as_json:
        click.echo(f"Drawn: {len(drawn)} pictures in {drawn[0].parent.parent}")
