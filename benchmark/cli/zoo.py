"""``dmlbench zoo``: the trained models that can be measured at once, and the card of each."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from dmlbench.cli.options import options

if TYPE_CHECKING:
    from dmlbench.zoo.registry import ZooModel


@click.command(
    epilog="\b\nExamples:\n"
    "  dmlbench zoo\n"
    "  dmlbench zoo fashion-mini/hm\n"
    "  dmlbench attack --zoo fashion-mini/hm --suite auto --queries 100",
)
@click.argument("name", required=False)
@options("json")
def zoo(name: str | None, as_json: bool) -> None:
    """List the trained models of the zoo, or show the card of one.

    A card has the data, the recipe, the adversary of the training, the measured numbers with their
    intervals and flags, the licence, and the command that trained the model. Nothing is fetched:
    the commands that use a model do so.
    """
    from dmlbench.zoo.registry import model, models

    chosen = list(models().values()) if name is None else [model(name)]
    if as_json:
        click.echo(json.dumps([card(one) for one in chosen], indent=1))
    elif name is None:
        for one in chosen:
            click.echo(f"{click.style(one.name, fg='cyan')}  {one.entry.summary}")
            click.echo(f"    {one.manifest.label} on {one.manifest.dataset}; {place(one)}")
    else:
        _print(chosen[0])


def card(one: ZooModel) -> dict[str, Any]:
    """The card of a model as JSON types."""
    from msgspec import to_builtins

    from dmlbench.analysis.csv_files import read_tidy

    made = one.manifest
    return {
        "name": one.name,
        **to_builtins(one.entry),
        "home": None if one.home is None else str(one.home),
        "label": made.label,
        "dataset": made.dataset,
        "model": made.model,
        "defense": made.resolved,
        "recipe": made.training["recipe"],
        "seed": made.training["seed"],
        "parameters": made.parameters,
        "training": made.training_id,
        "sha256": made.sha256,
        "rows": read_tidy(one.rows),
    }


def place(one: ZooModel) -> str:
    """The place of the weights, in words."""
    size = f"{one.entry.bytes / 1e6:.1f} MB"
    if one.home is not None:
        return f"{size}, in {one.home}"
    return f"{size}, not on this machine: {', '.join(one.entry.sources)}"


def _print(one: ZooModel) -> None:
    from dmlbench.analysis.csv_files import read_tidy
    from dmlbench.report.terminal import print_tables

    made, entry = one.manifest, one.entry
    recipe = ", ".join(f"{key} {value}" for key, value in made.training["recipe"].items())
    for title, text in (
        ("model", f"{entry.summary}; {made.model}, {made.parameters:,} parameters"),
        ("data", entry.data),
        ("defense", f"{made.label} ({made.resolved}), {made.training_cost} passes per step"),
        ("recipe", f"{recipe}, seed {made.training['seed']}"),
        ("trained by", entry.command),
        ("licence", entry.licence),
        ("weights", place(one)),
        ("SHA-256", made.sha256),
        ("training", made.training_id),
    ):
        click.echo(f"{title:11}{text}")
    print_tables(read_tidy(one.rows))
    click.echo(f"Measure it: dmlbench attack --zoo {one.name} --suite auto --queries 100")
