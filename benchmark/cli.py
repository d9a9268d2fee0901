"""The command line. Heavy imports happen inside the commands: ``--help`` stays instant."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dmlbench import __version__
from dmlbench.errors import UserError
from dmlbench.options import PATH, options

if TYPE_CHECKING:
    from dmlbench.attacks.base import Attack
    from dmlbench.datasets.base import Dataset
    from dmlbench.matrix import Session
    from dmlbench.registry import Component, Registry
    from dmlbench.store import Cell, Store

EXIT_FAILED_CELLS, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
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
@options("results", "leaderboards", "data_root")
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
    type=PATH,
    metavar="FILE",
    help="Weights: safetensors, or a plain PyTorch state dict.",
)
@click.option(
    "--model", metavar="SPEC", help="Network, or MODULE:FACTORY. Default: the data set's."
)
@click.option(
    "--label", help="Name of the model in tables. Default: its manifest's, or the file's."
)
@options("attacks", "suite", "dataset")
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
@options("results", "leaderboards", "data_root")
@options("device", "batch_size", "threads", "precision", "json")
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
@options("json")
def list_(kind: str | None, as_json: bool) -> None:
    """Show every registered attack, defense, data set and model with its parameters."""
    from dmlbench.catalog import describe, registries
    from dmlbench.report.console import print_listing

    chosen = {name: r for name, r in registries().items() if kind in (None, name)}
    described = {name: [describe(cls) for cls in registry] for name, registry in chosen.items()}
    if as_json:
        click.echo(json.dumps(described, indent=1))
        return
    print_listing(described)


@main.command()
@click.argument("dataset", required=False)
@options("results", "json")
def show(dataset: str | None, results: Path, as_json: bool) -> None:
    """Show stored results, of one data set or of all."""
    from dmlbench.report.console import print_table

    cells = _stored(results, dataset)
    if as_json:
        click.echo(json.dumps(cells, indent=1))
    else:
        print_table(cells)


@main.command()
@options("results", "leaderboards")
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
    from dmlbench.report.console import print_table

    tidy, wide = session.store.export()
    board = _render_board(session.store, session.dataset.card.name, leaderboards)
    if as_json:
        click.echo(json.dumps(cells, indent=1))
    else:
        print_table(cells)
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
