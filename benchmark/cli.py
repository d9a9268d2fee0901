"""The command line. Heavy imports happen inside the commands: ``--help`` stays instant."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dmlbench import __version__
from dmlbench.errors import UserError

if TYPE_CHECKING:
    from dmlbench.registry import Component, Registry
    from dmlbench.store import Cell

EXIT_FAILED_CELLS, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
F = TypeVar("F", bound=Callable[..., Any])


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


def _option(*names: str, **settings: Any) -> Callable[[F], F]:
    return click.option(*names, show_default=settings.pop("show_default", True), **settings)


_results = _option(
    "--results", type=click.Path(path_type=Path), default=Path("results"), help="Results folder."
)
_boards = _option(
    "--leaderboards",
    type=click.Path(path_type=Path),
    default=Path("leaderboards"),
    help="Folder for rendered boards.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for a script to read.")


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nFirst command:\n  dmlbench run --defense hm --attack ca+\n\nSee what there is:\n"
    "  dmlbench list",
)
@click.version_option(__version__, prog_name="dmlbench")
def main() -> None:
    """The benchmark of adversarial robustness for deep metric learning (image retrieval)."""
    warnings.showwarning = _one_line_warning


@main.command(
    epilog="\b\nExamples:\n"
    "  dmlbench run --defense hm --attack ca+\n"
    "  dmlbench run --defense hm:source=random,ics=0 --attack ca+:w=5 --attack ca-\n"
    "  dmlbench run --defense all --attack all --dataset fashion --seed 0 --seed 1\n\n"
    "\b\nExit codes: 0 fine, 1 some cells failed, 2 usage or input error.",
)
@_option(
    "--defense",
    "defenses",
    multiple=True,
    required=True,
    metavar="SPEC",
    help="Defense to train, or 'all'. May be repeated.",
    show_default=False,
)
@_option(
    "--attack",
    "attacks",
    multiple=True,
    required=True,
    metavar="SPEC",
    help="Attack to run, or 'all'. May be repeated.",
    show_default=False,
)
@_option("--dataset", default="fashion-mini", metavar="SPEC", help="Data set.")
@_option(
    "--model",
    metavar="SPEC",
    show_default=False,
    help="Network, or MODULE:FACTORY. Default: the data set's.",
)
@_option(
    "--recipe",
    metavar="KEY=VALUE,...",
    show_default=False,
    help="Change the data set's training recipe, e.g. epochs=2,pairs=32.",
)
@_option(
    "--seed",
    "seeds",
    multiple=True,
    type=click.IntRange(min=0),
    default=(0,),
    help="Seed of training and targets. May be repeated.",
)
@_results
@_boards
@_option(
    "--data-root",
    type=click.Path(path_type=Path),
    show_default=False,
    help="Folder of data sets, searched first.",
)
@_option(
    "--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."
)
@_option(
    "--batch-size",
    type=click.IntRange(min=1),
    show_default=False,
    help="Images a forward pass in evaluation; changes no result.",
)
@_option("--threads", type=click.IntRange(min=1), show_default=False, help="CPU threads.")
@_json
def run(
    defenses: tuple[str, ...],
    attacks: tuple[str, ...],
    dataset: str,
    model: str | None,
    recipe: str | None,
    seeds: tuple[int, ...],
    results: Path,
    leaderboards: Path,
    data_root: Path | None,
    device: str,
    batch_size: int | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Train each defense, measure it clean and under each attack, and write CSV and a board.

    The undefended model is always trained and measured beside the defenses. What is already
    stored is not done again.
    """
    from rich.console import Console

    from dmlbench import spec
    from dmlbench.attacks.base import ATTACKS
    from dmlbench.datasets.base import DATASETS
    from dmlbench.defenses.base import DEFENSES
    from dmlbench.models.base import parse_model
    from dmlbench.progress import reporter_for
    from dmlbench.recipe import Recipe
    from dmlbench.store import Store

    chosen = spec.parse(dataset, DATASETS)
    card = chosen.protocol
    wanted = [spec.parse("none", DEFENSES), *_parse_all(defenses, DEFENSES)]
    hostile = _parse_all(attacks, ATTACKS)
    parse_model(model or card.model)
    pairs = spec.split_pairs(recipe or "", f"recipe {recipe!r}")
    trained = spec.build(Recipe, {**_spelt(card.recipe), **pairs}, "recipe")
    store = Store(results)
    store.check_writable()
    Store(leaderboards).check_writable()

    from dmlbench import matrix
    from dmlbench.compute import Compute

    compute = Compute(device, batch_size, threads)
    compute.torch_device()
    console = Console(stderr=True)
    data = chosen.load(data_root)
    jobs = matrix.plan(chosen, data, model, wanted, hostile, seeds, trained)
    with reporter_for(console) as reporter:
        cells = matrix.run(jobs, data, store, compute, reporter)
    tidy, wide = store.export()
    board = _render_board(store, card.name, leaderboards)
    if as_json:
        click.echo(json.dumps(cells, indent=1))
    else:
        _print_table(cells)
        click.echo(f"CSV:   {tidy} (a row a metric), {wide} (a row a model)\nBoard: {board}")
    if any(cell["status"] != "ok" for cell in cells):
        sys.exit(EXIT_FAILED_CELLS)


@main.command("list")
@click.argument(
    "kind", required=False, type=click.Choice(["attacks", "defenses", "datasets", "models"])
)
@_json
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
        for entry in entries:
            _print_entry(entry)
        click.echo()


@main.command()
@click.argument("dataset", required=False)
@_results
@_json
def show(dataset: str | None, results: Path, as_json: bool) -> None:
    """Show stored results, of one data set or of all."""
    cells = _stored(results, dataset)
    if as_json:
        click.echo(json.dumps(cells, indent=1))
    else:
        _print_table(cells)


@main.command()
@_results
@_boards
def leaderboard(results: Path, leaderboards: Path) -> None:
    """Render the board of every data set with stored results."""
    from dmlbench.store import Store

    names = {cell["about"]["dataset"].partition(":")[0] for cell in _stored(results, None)}
    for name in sorted(names):
        click.echo(_render_board(Store(results), name, leaderboards))


C = TypeVar("C", bound="Component")


def _parse_all(specs: tuple[str, ...], registry: Registry[C]) -> list[C]:
    """The components of the specs; ``all`` stands for every registered name."""
    from dmlbench import spec

    names = [name for text in specs for name in (registry.names() if text == "all" else [text])]
    return [spec.parse(name, registry) for name in names]


def _spelt(component: Component) -> dict[str, str]:
    from dmlbench import spec

    return {p.name: p.show(getattr(component, p.name)) for p in spec.parameters(type(component))}


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


def _render_board(store: Any, dataset: str, folder: Path) -> Path:
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


def _print_entry(entry: dict[str, Any]) -> None:
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
        click.echo(f"      {p['name']}={p['default']}  {p['help']} ({p['domain']})")
