"""``dmlbench run``: train defenses, attack them, write results and a board."""

from __future__ import annotations

from typing import Any

import click

from dmlbench.commands.shared import finish, open_session, parse_all, parse_attacks, parse_recipe
from dmlbench.options import options


@click.command(
    epilog="\b\nExamples:\n"
    "  dmlbench run --defense hm --attack ca+\n"
    "  dmlbench run --defense hm:source=random,ics=0 --attack ca+:w=5 --attack ca-\n"
    "  dmlbench run --defense all --suite strict --dataset fashion --seed 0 --seed 1\n\n"
    "\b\nExit codes: 0 fine, 1 some cells failed, 2 usage or input error.",
)
@options("defenses", "attacks", "suite", "dataset", "model", "recipe", "seeds")
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

    chosen = spec.parse(dataset, DATASETS)
    wanted = [spec.parse("none", DEFENSES), *parse_all(defenses, DEFENSES)]
    hostile = parse_attacks(attacks, suite)
    network = parse_model(model or chosen.protocol.model)
    trained = parse_recipe(chosen, recipe)

    with open_session(chosen, **places) as session:
        from dmlbench import matrix

        network.build(session.data.channels, session.data.size)
        jobs = matrix.plan(chosen, session.data, network, wanted, seeds, trained)
        cells = matrix.run(jobs, hostile, session)
    finish(cells, session, places["leaderboards"], as_json)
