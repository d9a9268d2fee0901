"""``dmlbench check``: the conformance suite on a method, built in or of the user's own."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dmlbench.cli.options import options
from dmlbench.common.errors import EXIT_FAILED_CELLS, UserError

if TYPE_CHECKING:
    from dmlbench.core.reference import Reference
    from dmlbench.core.registry import Component, Registry
    from dmlbench.testing import Finding

COLOURS = {"ok": "green", "FAILED": "red", "left out": "yellow"}
KINDS = {"attack": "attacks", "defense": "defenses", "dataset": "datasets", "model": "models"}


@click.command(
    epilog="\b\nExamples:\n"
    "  dmlbench check my_package.attacks:Towards\n"
    "  dmlbench check attacks/towards.py:TowardsAttack:steps=4\n"
    "  dmlbench check hm ca+ my/nets.py:make:width=32\n\n"
    "\b\nExit codes: 0 every check passed, 1 a check failed, 2 it cannot be loaded."
)
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...")
@click.option(
    "--kind", type=click.Choice(list(KINDS)), help="Where a name is that of more than one kind."
)
@options("data_root", "cache", "json")
def check(
    specs: tuple[str, ...],
    kind: str | None,
    data_root: Path | None,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Check attacks, defenses, data sets and networks: is what they compute what they say?

    SPEC is a registered name, MODULE:CLASS or FILE.py:CLASS, with :KEY=VALUE,... behind it. Each
    check that fails says what is wrong, why it matters and how to mend it.
    """
    found = [(spec, _component(spec, kind)) for spec in specs]
    records = []
    for spec, component in found:
        results = _findings(component, data_root, cache)
        passed = all(one.passed is not False for one in results)
        records.append({"spec": spec, "passed": passed, "findings": [asdict(r) for r in results]})
        if not as_json:
            _print(spec, results)
    if as_json:
        click.echo(json.dumps(records, indent=1))
    sys.exit(0 if all(record["passed"] for record in records) else EXIT_FAILED_CELLS)


def _print(spec: str, results: list[Finding]) -> None:
    click.secho(spec, bold=True)
    for one in results:
        click.echo(f"  {click.style(f'{one.word:9}', fg=COLOURS[one.word])}{one.said}")
    counts = Counter(one.word for one in results)
    said = ", ".join(f"{counts[word]} {word}" for word in COLOURS if word in counts)
    click.echo(f"{len(results)} checks: {said}")


def _findings(component: Component, data_root: Path | None, cache: Path | None) -> list[Finding]:
    """The result of every check, whether they passed or not."""
    from dmlbench import testing
    from dmlbench.datasets.base import Dataset

    try:
        if isinstance(component, Dataset):
            return testing.check_dataset(component, data_root, cache)
        return testing.check(component)
    except testing.ConformanceError as failed:
        return failed.findings


def _component(text: str, kind: str | None) -> Component:
    """The component that a spec names, of whatever kind.

    Raises:
        UserError: there is none, it cannot be loaded, or the name is that of several kinds.
    """
    from dmlbench.cli.registries import registries
    from dmlbench.core import reference, spec
    from dmlbench.models.base import MODELS, parse_model

    every = registries()
    chosen: list[Registry[Any]] = [every[KINDS[kind]]] if kind else list(every.values())
    name, _, rest = text.strip().partition(":")
    named = [registry for registry in chosen if name in registry.names()]
    if len(named) > 1:
        kinds = " and ".join(f"a {registry.kind}" for registry in named)
        raise UserError(f"{name!r} is {kinds}: say which with --kind")
    if not named:
        entries = [e for r in chosen for e in entry_points(group=r.group) if e.name == name]
        if entries:  # of a plugin that was left out: loading it says why
            text = f"{entries[0].module}:{entries[0].attr}:{rest}"
        pointed = reference.read(text)
        if pointed is None:
            other = [registry.kind for registry in every.values() if name in registry.names()]
            if other:
                raise UserError(f"{name!r} is no {kind} but of another kind, {other[0]}")
            if name.endswith(".py"):
                raise UserError(f"{text!r} is a file: name the class in it too, {name}:ClassName")
            raise UserError(
                f"{text!r} is neither a registered name ('dmlbench list' has them) nor "
                "MODULE:CLASS or FILE.py:CLASS"
            )
        named = [every[KINDS[kind]] if kind else _registry(pointed[0], every)]
    return parse_model(text) if named[0] is MODELS else spec.parse(text, named[0])


def _registry(place: Reference, every: dict[str, Registry[Any]]) -> Registry[Any]:
    """The registry of the kind that the class at ``place`` is; of other callables, the networks.

    Raises:
        UserError: it cannot be loaded, or is nothing that could be checked.
    """
    from dmlbench.attacks.base import Attack
    from dmlbench.core.registry import Component
    from dmlbench.datasets.base import Dataset
    from dmlbench.defenses.base import Defense
    from dmlbench.models.base import Model

    found: Any = place.load()
    bases: dict[str, Any] = {"attacks": Attack, "defenses": Defense, "datasets": Dataset}
    bases["models"] = Model
    for name, base in bases.items():
        if isinstance(found, type) and issubclass(found, base):
            return every[name]
    component = isinstance(found, type) and issubclass(found, Component)
    if callable(found) and not component:  # the factory of a network
        return every["models"]
    raise UserError(
        f"{place} is no attack, defense, data set or network: derive it from Attack, Defense, "
        "Dataset or Model, or give a function that returns a torch.nn.Module"
    )
