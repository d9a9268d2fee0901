"""``dmlbench compare``: differences between two models, query by query."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dmlbench.cli.options import once, options
from dmlbench.cli.shared import warn_of_damage

if TYPE_CHECKING:
    from dmlbench.analysis.compare import Difference


@click.command(
    epilog="\b\nExamples:\n"
    "  dmlbench compare none hm\n"
    "  dmlbench compare act hm --dataset fashion\n"
    "  dmlbench compare none noise.py:Noise:sigma=0.3\n"
    "  dmlbench compare fashion-mini/none fashion-mini/hm   # rows of the zoo\n"
    "  dmlbench compare results/models/ID other/models/ID",
)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@once("--dataset", help="Compare on this data set only.")
@options("results", "json")
def compare(a: str, b: str, dataset: str | None, results: Path, as_json: bool) -> None:
    """Compare two measured models: the difference B - A of each metric, with its 95% interval.

    Differences are taken query by query, and intervals are bootstrapped over queries. A and B are
    defenses (as tables show them, or file.py:Class), checkpoints, folders under
    results/models, or models of the zoo. Only stored results are read: nothing is trained or
    attacked. Models of which the results folder has only CSVs, and those of the zoo that were not
    measured here, are compared by their rows, with intervals of independent queries.
    """
    from msgspec import to_builtins

    from dmlbench.analysis.differences import of_names
    from dmlbench.core.naming import parameters, told_apart
    from dmlbench.storage.store import Store

    warn_of_damage(Store(results))
    compared = of_names(a, b, results, dataset)
    found = compared.differences
    if not compared.paired:
        click.echo(
            "note: from CSVs, which hold no single queries: the queries of A and B count as "
            "independent ones",
            err=True,
        )
    for side in compared.collapsed:
        click.echo(
            f"note: {side} has collapsed (it retrieves nothing any more): its numbers are no sign "
            "of robustness",
            err=True,
        )
    if compared.left_out:
        click.echo(f"note: {compared.left_out}", err=True)
    if as_json:
        records = [to_builtins(one) | {"favours": one.favours} for one in found]
        click.echo(json.dumps(records, indent=1))
        return
    details = [
        parameters(one["defense"]) | parameters(f":{one['recipe']}") | {"model": one["model"]}
        for one in (compared.a, compared.b)
    ]
    _print(found, *told_apart([compared.a["label"], compared.b["label"]], details))


def _told_by(name: str, found: list[Difference]) -> bool:
    """True if lines of one attack and metric differ in that field."""
    lines = {(one.suite, one.attack, one.metric, getattr(one, name)) for one in found}
    return len(lines) > len({line[:-1] for line in lines})


def _print(found: list[Difference], a: str, b: str) -> None:
    from dmlbench.analysis.compare import SETTING
    from dmlbench.report.terminal import print_grid

    click.echo(f"A = {a}\nB = {b}")
    differing = [name for name in SETTING if _told_by(name, found)]
    described = ("attack", "metric", *differing)
    heads = (*described, "A", "B", "B - A", "95% interval", "n", "seeds", "better")
    lines = []
    for one in found:
        d = one.difference
        attack = f"{one.attack} ({one.suite})" if one.attack else "clean"
        numbers = (
            f"{one.a:.3f}",
            f"{one.b:.3f}",
            f"{d.value:+.3f}",
            f"[{d.low:+.3f}, {d.high:+.3f}]",
        )
        seeds = ",".join(f"{i}" if i == j else f"{i}/{j}" for i, j in one.seeds)
        setting = (getattr(one, name)[:12] or "-" for name in differing)
        lines.append((attack, one.metric, *setting, *numbers, str(d.n), seeds, one.favours or "-"))
    print_grid(heads, lines, names=(*described, "seeds"))
