"""``dmlbench run``: train defenses, attack them, write results and a board."""

from __future__ import annotations

from typing import Any

import click

from dmlbench.commands.shared import finish, open_session, parse_all, parse_attacks, spelt
from dmlbench.options import options


@click.command(
    epilog="\b\nExamples:\n"
    "  dmlbench run --defense hm --attack ca+\n"
    "  dmlbench run --defense hm:source=random,ics=0 --attack ca+:w=5 --attack ca-\n"
    "  dmlbench run --defense all --suite strict --dataset fashion --seed 0 --seed 1\n\n"
    "\b\nExit codes: 0 fine, 1 some cells failed, 2 usage or input error.",
)
@click.option(
    "--defense",
    "defenses",
    multiple=True,
    required=True,
    metavar="SPEC",
    help="Defense to train, or 'all'. May be repeated.",
)
@options("attacks", "suite", "dataset")
@click.option(
    "--model", metavar="SPEC", help="Network, or MODULE:FACTORY. Default: the data set's."
)
@click.option(
    "--recipe",
    default="",
    metavar="KEY=VALUE,...",
    help="Change the data set's training recipe, e.g. epochs=2,pairs=32.",
)
@click.option(
    "--seed",
    "seeds",
    multiple=True,
    type=click.IntRange(min=0),
    default=(0,),
    show_default=True,
    help="Seed of training and targets. May be repeated.",
)
@options("results", "leaderboards", "data_root", "cache")
@options("device", "batch_size", "threads", "precision", "json")
def run(
    defenses: tuple[str, ...],
    attacks: tuple[str, ...],
    suite: str | None,
    dataset: str,
    model: str | None,
    recipe: str,
    seeds: tuple[int, ...],
    as_json: bool,
    **places: Any,
) -> None:
    """Train each defense, measure it clean and under each attack, and write CSV and a board.

    The undefended model is always trained and measured beside the defenses. What is already
    stored is not done again.
    """
    from dmlbench import spec
    from dmlbench.datasets.base import DATASETS
    from dmlbench.defenses.base import DEFENSES
    from dmlbench.models.base import parse_model
    from dmlbench.recipe import Recipe

    chosen = spec.parse(dataset, DATASETS)
    card = chosen.protocol
    wanted = [spec.parse("none", DEFENSES), *parse_all(defenses, DEFENSES)]
    hostile = parse_attacks(attacks, suite)
    network = parse_model(model or card.model)
    pairs = spec.split_pairs(recipe, f"recipe {recipe!r}")
    trained = spec.build(Recipe, {**spelt(card.recipe), **pairs}, "recipe")

    with open_session(chosen, **places) as session:
        from dmlbench import matrix

        network.build(session.data.channels, session.data.size)
        jobs = matrix.plan(chosen, session.data, model, wanted, seeds, trained)
        cells = matrix.run(jobs, hostile, session)
    finish(cells, session, places["leaderboards"], as_json)
