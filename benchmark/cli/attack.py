"""``dmlbench attack``: measure trained weights, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dmlbench.cli.options import PATH, options
from dmlbench.cli.shared import check_outputs, finish


class _Saved(click.ParamType[int | None]):
    """A number of pictures, or ``all`` (None)."""

    name = "n|all"

    def convert(self, value: Any, param: Any, context: Any) -> int | None:
        if value == "all":
            return None
        if not str(value).isascii() or not str(value).isdecimal():
            self.fail(f"{value!r} is neither a whole number nor 'all'", param, context)
        return int(value)


@click.command(
    epilog="\b\nExamples:\n"
    "  dmlbench attack --checkpoint results/models/ID/checkpoint.safetensors --suite strict\n"
    "  dmlbench attack --model my.nets:resnet --checkpoint w.pt --dataset fashion --attack es",
)
@click.option(
    "--checkpoint",
    required=True,
    type=PATH,
    metavar="FILE",
    help="File of weights: safetensors, a PyTorch state dict, or a Lightning checkpoint (as "
    "RobRank's code writes).",
)
@options("model")
@click.option(
    "--label",
    help="Name of the model in tables. Default: the one in its manifest, else the file name.",
)
@options("attacks", "suites", "queries", "recalls", "dataset")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed that decides the targets of the attacks.",
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
@options("results", "leaderboards", "data_root", "cache")
@options("device", "batch_size", "threads", "precision", "json")
def attack(
    checkpoint: Path,
    model: str | None,
    label: str | None,
    attacks: tuple[str, ...],
    suites: tuple[str, ...],
    queries: int | None,
    recalls: bool,
    dataset: str,
    seed: int,
    saved: int | None,
    results: Path,
    leaderboards: Path,
    as_json: bool,
    **places: Any,
) -> None:
    """Measure a trained model, on clean images and under attacks, without training."""
    from dmlbench.core import spec
    from dmlbench.datasets.base import DATASETS
    from dmlbench.models.base import parse_model
    from dmlbench.sweep.requests import parse_attacks
    from dmlbench.sweep.session import open_session

    chosen = spec.parse(dataset, DATASETS)
    asked = parse_attacks(attacks, suites)
    network = parse_model(model) if model else None
    check_outputs(results, leaderboards)
    with open_session(
        chosen, results, **places, keep=saved or 0, save_images=saved is None
    ) as session:
        from dmlbench.sweep import plan
        from dmlbench.sweep.pictures import draw_attacks
        from dmlbench.sweep.run import run
        from dmlbench.sweep.weights import checkpoint_weights

        session.check_queries(queries)
        weights = checkpoint_weights(
            *(chosen, session.digest, network, checkpoint, label, seed, places["precision"])
        )
        planned = plan.planned_attacks(asked, chosen.protocol.threat, queries, recalls)
        cells = run(session, [weights], planned)
        drawn = draw_attacks(session, plan.cells(weights, planned)) if saved else []
    finish(cells, chosen.card.name, results, leaderboards, as_json)
    if drawn and not as_json:
        click.echo(f"Drawn: {len(drawn)} pictures in {drawn[0].parent.parent}")
    if saved is None and not as_json:
        click.echo(f"Saved: the images of each attack in {results / 'adversarial'}/CELL.npz")
