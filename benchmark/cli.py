"""The command line. Heavy imports happen inside the commands: ``--help`` stays instant."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dmlbench import __version__
from dmlbench.errors import UserError
from dmlbench.recipe import PRECISIONS, SUITES

if TYPE_CHECKING:
    from dmlbench.attacks.base import Attack
    from dmlbench.datasets.base import Dataset
    from dmlbench.matrix import Session
    from dmlbench.registry import Component, Registry
    from dmlbench.store import Cell, Store

EXIT_FAILED_CELLS, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound="Component")


class _Group(click.Group):
    """Turns a UserError into one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            _fail(" ".join(str(error).split()), EXIT_USAGE)
        except KeyboardInterrupt:
            _fail("interrupted; finished work is stored, run again to go on", EXIT_INTERRUPTED)


def _fail(message: str, code: int) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


def _one_line_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"warning: {message}", err=True)


_PATH = click.Path(path_type=Path)
_OPTIONS: dict[str, Callable[[F], F]] = {
    "dataset": click.option(
        "--dataset", default="fashion-mini", show_default=True, metavar="SPEC", help="Data set."
    ),
    "attacks": click.option(
        "--attack",
        "attacks",
        multiple=True,
        metavar="SPEC",
        help="Attack to run, or 'all'. May be repeated.",
    ),
    "suite": click.option(
        "--suite",
        type=click.Choice(SUITES),
        help="Definitions that attacks follow: the papers' (strict) or the published code's "
        "(ers). Without --attack it runs the nine attacks of ERS.",
    ),
    "results": click.option(
        "--results", type=_PATH, default="results", show_default=True, help="Results folder."
    ),
    "leaderboards": click.option(
        "--leaderboards",
        type=_PATH,
        default="leaderboards",
        show_default=True,
        help="Folder for rendered boards.",
    ),
    "data_root": click.option(
        "--data-root", type=_PATH, help="Folder of data sets, searched first."
    ),
    "device": click.option(
        "--device",
        default="auto",
        show_default=True,
        help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.",
    ),
    "batch_size": click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        help="Images a forward pass in evaluation; changes no result.",
    ),
    "threads": click.option("--threads", type=click.IntRange(min=1), help="CPU threads."),
    "precision": click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="fp32",
        show_default=True,
        help="Of the network in evaluation; tf32 and bf16 are labelled in the row.",
    ),
    "json": click.option(
        "--json", "as_json", is_flag=True, help="Print JSON for a script to read."
    ),
}


def _options(*names: str) -> Callable[[F], F]:
    """The named shared options, in that order."""

    def decorate(command: F) -> F:
        for name in reversed(names):
            command = _OPTIONS[name](command)
        return command

    return decorate


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nFirst command:\n  dmlbench run --defense hm --attack ca+\n\n"
    "\b\nSee what there is:\n  dmlbench list",
)
@click.version_option(__version__, prog_name="dmlbench")
def main() -> None:
    """The benchmark of adversarial robustness for deep metric learning (image retrieval)."""
    warnings.showwarning = _one_line_warning


@main.command(
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
@_options("attacks", "suite", "dataset")
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
@_options("results", "leaderboards", "data_root")
@_options("device", "batch_size", "threads", "precision", "json")
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
    wanted = [spec.parse("none", DEFENSES), *_parse_all(defenses, DEFENSES)]
    hostile = _attacks(attacks, suite)
    network = parse_model(model or card.model)
    pairs = spec.split_pairs(recipe, f"recipe {recipe!r}")
    trained = spec.build(Recipe, {**_spelt(card.recipe), **pairs}, "recipe")

    with _session(chosen, **places) as session:
        from dmlbench import matrix

        network.build(session.data.channels, session.data.size)
        jobs = matrix.plan(chosen, session.data, model, wanted, seeds, trained)
        cells = matrix.run(jobs, hostile, session)
    _finish(cells, session, places["leaderboards"], as_json)


@main.command(
    epilog="\b\nExamples:\n"
    "  dmlbench attack --checkpoint results/models/ID/checkpoint.safetensors --suite strict\n"
    "  dmlbench attack --model my.nets:resnet --checkpoint w.pt --dataset fashion --attack es",
)
@click.option(
    "--checkpoint",
    required=True,
    type=_PATH,
    metavar="FILE",
    help="Weights: safetensors, or a plain PyTorch state dict.",
)
@click.option(
    "--model", metavar="SPEC", help="Network, or MODULE:FACTORY. Default: the data set's."
)
@click.option(
    "--label", help="Name of the model in tables. Default: its manifest's, or the file's."
)
@_options("attacks", "suite", "dataset")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of targets."
)
@click.option(
    "--save-adversarial",
    "pictures",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Also draw the first N queries: clean, perturbation, adversarial, top 5 before and after.",
)
@_options("results", "leaderboards", "data_root")
@_options("device", "batch_size", "threads", "precision", "json")
def attack(
    checkpoint: Path,
    model: str | None,
    label: str | None,
    attacks: tuple[str, ...],
    suite: str | None,
    dataset: str,
    seed: int,
    pictures: int,
    as_json: bool,
    **places: Any,
) -> None:
    """Measure any trained model, clean and under attacks, without training."""
    from dmlbench import spec
    from dmlbench.datasets.base import DATASETS
    from dmlbench.models.base import parse_model

    chosen = spec.parse(dataset, DATASETS)
    hostile = _attacks(attacks, suite)
    network = parse_model(model or chosen.protocol.model)

    with _session(chosen, **places) as session:
        from dmlbench import matrix
        from dmlbench.report.pictures import draw_attacks

        subject = matrix.external(network, checkpoint, session, label, seed)
        cells = matrix.measure(subject, hostile, seed, session)
        drawn = draw_attacks(subject, hostile, pictures, seed, session) if pictures else []
    _finish(cells, session, places["leaderboards"], as_json)
    if drawn and not as_json:
        click.echo(f"Drawn: {len(drawn)} pictures in {drawn[0].parent.parent}")


@main.command("list")
@click.argument(
    "kind", required=False, type=click.Choice(["attacks", "defenses", "datasets", "models"])
)
@_options("json")
def list_(kind: str | None, as_json: bool) -> None:
    """Show every registered attack, defense, data set and model with its parameters."""
    from dmlbench.catalog import describe, registries

    chosen = {name: r for name, r in registries().items() if kind in (None, name)}
    described = {name: [describe(cls) for cls in registry] for name, registry in chosen.items()}
    if as_json:
        click.echo(json.dumps(described, indent=1))
        return
    for name, entries in described.items():
        click.secho(name, bold=True)
        shared = _shared_parameters(entries)
        for entry in entries:
            _print_entry(entry, shared)
        if shared:
            click.echo(f"  {click.style('all of them', fg='cyan')}")
            for p in shared:
                _print_parameter(p)
        click.echo()


@main.command()
@click.argument("dataset", required=False)
@_options("results", "json")
def show(dataset: str | None, results: Path, as_json: bool) -> None:
    """Show stored results, of one data set or of all."""
    cells = _stored(results, dataset)
    if as_json:
        click.echo(json.dumps(cells, indent=1))
    else:
        _print_table(cells)


@main.command()
@_options("results", "leaderboards")
def leaderboard(results: Path, leaderboards: Path) -> None:
    """Render the board of every data set with stored results."""
    from dmlbench.store import Store

    names = {cell["about"]["dataset"].partition(":")[0] for cell in _stored(results, None)}
    for name in sorted(names):
        click.echo(_render_board(Store(results), name, leaderboards))


def _parse_all(specs: tuple[str, ...], registry: Registry[C]) -> list[C]:
    """The components of the specs; ``all`` stands for every registered name."""
    from dmlbench import spec

    names = [name for text in specs for name in (registry.names() if text == "all" else [text])]
    return [spec.parse(name, registry) for name in names]


def _attacks(specs: tuple[str, ...], suite: str | None) -> list[Attack]:
    """The attacks asked for, following the suite if one is named."""
    from dataclasses import replace

    from dmlbench.attacks.base import ATTACKS
    from dmlbench.recipe import ERS_ATTACKS

    if not specs and not suite:
        raise UserError("name an attack (--attack ca+), or the attacks of ERS (--suite strict)")
    chosen = _parse_all(specs or ERS_ATTACKS, ATTACKS)
    return [one if one.suite else replace(one, suite=suite) for one in chosen]


def _spelt(component: Component) -> dict[str, str]:
    from dmlbench import spec

    return {p.name: p.show(getattr(component, p.name)) for p in spec.parameters(type(component))}


@contextmanager
def _session(
    dataset: Dataset,
    results: Path,
    leaderboards: Path,
    data_root: Path | None,
    device: str,
    batch_size: int | None,
    threads: int | None,
    precision: str,
) -> Iterator[Session]:
    """Data, store and device, each checked before any work, and progress on standard error."""
    from rich.console import Console

    from dmlbench.compute import Compute
    from dmlbench.files import check_writable
    from dmlbench.matrix import Session
    from dmlbench.progress import reporter_for
    from dmlbench.store import Store

    compute = Compute(device, batch_size, threads, precision)
    compute.check()
    data = dataset.load(data_root)
    check_writable(results, "--results")
    check_writable(leaderboards, "--leaderboards")
    with reporter_for(Console(stderr=True)) as reporter:
        yield Session(dataset, data, Store(results), compute, reporter)


def _finish(cells: list[Cell], session: Session, leaderboards: Path, as_json: bool) -> None:
    """Export, render, print; exit with 1 if a cell failed."""
    tidy, wide = session.store.export()
    board = _render_board(session.store, session.dataset.card.name, leaderboards)
    if as_json:
        click.echo(json.dumps(cells, indent=1))
    else:
        _print_table(cells)
        click.echo(f"CSV:   {tidy} (a row a metric), {wide} (a row a model)\nBoard: {board}")
    if any(cell["status"] != "ok" for cell in cells):
        sys.exit(EXIT_FAILED_CELLS)


def _stored(results: Path, dataset: str | None) -> list[Cell]:
    from dmlbench.store import Store

    store = Store(results)
    for path in store.damaged():
        click.echo(f"warning: {path} is damaged and left out; the next run redoes it", err=True)
    cells = [c for c in store.cells() if dataset in (None, c["about"]["dataset"])]
    if not cells:
        raise UserError(
            f"no results{f' of {dataset}' if dataset else ''} in {results}: "
            "begin with 'dmlbench run --defense hm --attack ca+'"
        )
    return cells


def _render_board(store: Store, dataset: str, folder: Path) -> Path:
    from dmlbench.datasets.base import DATASETS
    from dmlbench.files import write_atomically
    from dmlbench.report.markdown import board
    from dmlbench.tables import wide

    card = DATASETS.get(dataset)().protocol
    cells = [c for c in store.cells() if c["about"]["dataset"].partition(":")[0] == dataset]
    path = folder / f"{dataset}.md"
    write_atomically(path, board(card, wide(cells)).encode())
    return path


def _print_table(cells: list[Cell]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dmlbench.report.markdown import grid, groups
    from dmlbench.tables import wide

    console = Console()
    if not console.is_terminal:
        console.width = 10_000  # a pipe has no edge to wrap at
    rows = wide(cells)
    for title, group in groups(rows):
        lines = grid(group)
        needed = sum(3 + max(map(len, column)) for column in zip(*lines, strict=True))
        if needed > console.width:  # one column a model is narrower than one column a metric
            lines = [list(line) for line in zip(*lines, strict=True)]
        table = Table(box=box.SIMPLE_HEAD)
        for number, heading in enumerate(lines[0]):
            table.add_column(Text(heading), justify="right" if number else "left")
        for line in lines[1:]:
            table.add_row(*map(Text, line))
        click.secho(title, bold=True)
        console.print(table)
    for row in rows:
        for what, error in row.failed.items():
            click.echo(f"failed: {what} on {row.about['label']}: {error}")


def _shared_parameters(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameters that every one of several entries has, to be shown once."""
    if len(entries) < 2:
        return []
    return [p for p in entries[0]["parameters"] if all(p in e["parameters"] for e in entries)]


def _print_entry(entry: dict[str, Any], shared: list[dict[str, Any]]) -> None:
    columns = ", ".join(
        f"{c['name']}{' in ' + c['unit'] if c['unit'] else ''} ({c['better']} is better)"
        for c in entry.get("columns", [])
    )
    click.echo(f"  {click.style(entry['name'], fg='cyan')}  {entry['summary']}")
    if columns:
        click.echo(f"      reports {columns}")
    if entry["paper"]:
        click.echo(f"      {entry['paper']['short']}  {entry['paper']['url']}")
    for p in entry["parameters"]:
        if p not in shared:
            _print_parameter(p)


def _print_parameter(p: dict[str, Any]) -> None:
    click.echo(f"      {p['name']}={p['default']}  {p['help']} ({p['domain']})")
