"""``dmlbench list``: what is registered."""

from __future__ import annotations

import json

import click

from dmlbench.cli.options import options


@click.command("list")
@click.argument(
    "kind", required=False, type=click.Choice(["attacks", "defenses", "datasets", "models"])
)
@options("json")
def list_(kind: str | None, as_json: bool) -> None:
    """Show every registered attack, defense, data set and model with its parameters."""
    from dmlbench.cli.catalog import column_help, describe, registries
    from dmlbench.cli.console import print_listing

    chosen = {name: r for name, r in registries().items() if kind in (None, name)}
    described = {name: [describe(cls) for cls in registry] for name, registry in chosen.items()}
    if as_json:
        click.echo(json.dumps(described, indent=1))
        return
    print_listing(described, column_help())
