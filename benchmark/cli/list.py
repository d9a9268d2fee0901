"""``dmlbench list``: every registered attack, defense, data set and network. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from dmlbench.cli.options import options
from dmlbench.cli.registries import KINDS, registries
from dmlbench.core.protocol import TrainingThreat

if TYPE_CHECKING:
    from dmlbench.core.registry import Component


@click.command("list")
@click.argument("kind", required=False, type=click.Choice(KINDS))
@options("json")
def list_(kind: str | None, as_json: bool) -> None:
    """Show every registered attack, defense, data set and model with its parameters."""
    described = {
        name: [describe(cls) for cls in registry]
        for name, registry in registries().items()
        if kind in (None, name)
    }
    if as_json:
        click.echo(json.dumps(described, indent=1))
        return
    from dmlbench.attacks.base import ATTACKS

    help = {column.name: column.help for attack in ATTACKS for column in attack.headings()}
    for name, entries in described.items():
        click.secho(name, bold=True)
        _print_kind(entries, help)
        click.echo()


def describe(cls: type[Component]) -> dict[str, Any]:
    """A registered class as JSON types.

    Keys: ``name``, ``summary``, ``version``, ``paper`` and ``parameters``; an attack also has
    ``columns`` and ``auto`` (``Attack.auto``), a data set its network, training recipe and threat
    models.
    """
    from dmlbench.attacks.base import Attack
    from dmlbench.core import spec
    from dmlbench.datasets.base import DatasetCard

    card = cls.card
    described: dict[str, Any] = {
        "name": card.name,
        "summary": card.summary,
        "version": card.version,
        "paper": card.paper
        and {key: getattr(card.paper, key) for key in ("short", "title", "url", "bibtex")},
        "parameters": [
            {
                "name": p.key,
                "default": "..." if p.required else p.show(p.default),
                "domain": p.domain,
                "help": p.help,
            }
            for p in spec.parameters(cls)
        ],
    }
    if issubclass(cls, Attack):
        described["columns"] = [
            {"name": c.name, "unit": c.unit, "better": c.better} for c in cls.headings()
        ]
        described["auto"] = cls.auto
    if isinstance(card, DatasetCard):
        described |= {
            "model": card.model,
            "recipe": spec.values(card.recipe),
            "threat": vars(card.threat),
            "training_threat": vars(card.training_threat),
            "note": card.note,
        }
    return described


def _print_kind(entries: list[dict[str, Any]], help: Mapping[str, str]) -> None:
    """Print what ``describe`` gave; parameters that all entries share come once, at the end.

    ``help`` says what the number in a column means, by the column's heading.
    """
    first, *others = [entry["parameters"] for entry in entries]
    shared = [p for p in first if all(p in one for one in others)] if others else []
    for entry in entries:
        click.echo(f"  {click.style(entry['name'], fg='cyan')}  {entry['summary']}")
        if "columns" in entry:
            click.echo(f"      reports {', '.join(map(_column, entry['columns']))}")
            for column in entry["columns"]:
                if text := help[column["name"]]:
                    click.echo(f"        {column['name']}: {text}")
        if entry["paper"]:
            click.echo(f"      {entry['paper']['short']}  {entry['paper']['url']}")
        if "recipe" in entry:
            for line in protocol(entry):
                click.echo(f"      {line}")
        if entry.get("auto"):
            click.echo(f"      auto: {entry['auto']}")
        for p in entry["parameters"]:
            if p not in shared:
                _print_parameter(p)
    if shared:
        click.echo(f"  {click.style('all of them', fg='cyan')} (some refuse one)")
        for p in shared:
            _print_parameter(p)


def _column(column: dict[str, str]) -> str:
    unit = f" in {column['unit']}" if column["unit"] else ""
    return f"{column['name']}{unit} ({column['better']} is better)"


def protocol(entry: dict[str, Any]) -> list[str]:
    """Network, recipe and adversaries on a data set's card, from ``describe``: one line each."""
    recipe = ", ".join(
        f"{key} {value:g}" if isinstance(value, int | float) else f"{key} {value}"
        for key, value in entry["recipe"].items()
    )
    threat, training = entry["threat"], TrainingThreat(**entry["training_threat"])
    return [
        f"trains {entry['model']}: {recipe}",
        f"adversarial training with eps {training.eps * 255:g}/255, {training.eta} steps (eta) of "
        f"{training.step(training.eps, training.eta) * 255:g}/255",
        f"attacked with eps {threat['eps'] * 255:g}/255, {threat['steps']} steps of "
        f"{threat['alpha'] * 255:g}/255, suite {threat['suite']}",
    ]


def _print_parameter(p: dict[str, Any]) -> None:
    click.echo(f"      {p['name']}={p['default']}  {p['help']} ({p['domain']})")
