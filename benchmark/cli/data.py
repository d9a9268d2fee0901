"""``dmlbench data``: list data sets, check their files, download them."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dmlbench.cli.completion import specs
from dmlbench.cli.options import options
from dmlbench.common.errors import EXIT_FAILED_CELLS
from dmlbench.common.text import counted, listed

if TYPE_CHECKING:
    from dmlbench.datasets.verify import Verification


@click.group()
def data() -> None:
    """List, verify and download data sets."""


@data.command("list", epilog="\b\nExamples:\n  dmlbench data list\n  dmlbench data list folder")
@click.argument("datasets", nargs=-1, metavar="[SPEC]...", shell_complete=specs("datasets"))
@options("data_root", "json")
def list_(datasets: tuple[str, ...], data_root: Path | None, as_json: bool) -> None:
    """Show every data set: its size, and its folder or where to get it.

    Of data sets that are named, show the keys of their specs too.
    """
    from dmlbench.core import spec
    from dmlbench.datasets.base import DATASETS

    described = []
    for dataset in [spec.parse(one, DATASETS) for one in datasets] or [cls() for cls in DATASETS]:
        card, place = dataset.protocol, dataset.locate(data_root)
        described.append(
            {
                "name": card.name,
                "summary": card.summary,
                "train": None if card.train is None else vars(card.train),
                "test": None if card.test is None else vars(card.test),
                "gallery": None if card.gallery is None else vars(card.gallery),
                "place": None if place is None else str(place),
                "source": card.source,
            }
        )
        if as_json:
            continue
        click.echo(f"{click.style(card.name, fg='cyan')}  {card.summary}")
        if card.train is not None:
            gallery = f"; gallery {card.gallery}" if card.gallery else ""
            click.echo(f"    train {card.train}; test {card.test}{gallery}")
        click.echo(f"    {f'in {place}' if place else card.source}")
        for p in spec.parameters(type(dataset)) if datasets else ():
            default = "..." if p.required else p.show(p.default)
            click.echo(f"    {card.name}:{p.key}={default}  {p.help} ({p.domain})")
    if as_json:
        click.echo(json.dumps(described, indent=1))


@data.command(
    epilog="\b\nExamples:\n  dmlbench data verify cub --data-root /data\n"
    "  dmlbench data verify folder:root=my_images\n\n"
    "\b\nExit codes: 0 sound, 1 not sound, 2 not found."
)
@click.argument("dataset", metavar="SPEC")
@options("data_root", "cache", "json")
def verify(dataset: str, data_root: Path | None, cache: Path | None, as_json: bool) -> None:
    """Read every file of a data set and compare the counts with the official ones."""
    from rich.console import Console

    from dmlbench.common.console_progress import reporter_for
    from dmlbench.core import spec
    from dmlbench.datasets.base import DATASETS
    from dmlbench.datasets.files.cache import Cache
    from dmlbench.datasets.verify import verify as look_at

    chosen = spec.parse(dataset, DATASETS)
    with reporter_for(Console(stderr=True)) as reporter:
        report = look_at(chosen, data_root, Cache(cache, reporter))
    if as_json:
        click.echo(json.dumps(asdict(report) | {"sound": report.sound}, indent=1, default=str))
    else:
        _print(report, Cache(cache).place)
        if not report.sound:
            click.echo(f"not sound; {chosen.protocol.source}" if report.official else "not sound")
    sys.exit(0 if report.sound else EXIT_FAILED_CELLS)


@data.command()
@click.argument("dataset", metavar="SPEC")
@options("data_root")
def download(dataset: str, data_root: Path | None) -> None:
    """Download a data set, if a host still serves it.

    An interrupted download of cub or sop continues.
    """
    from rich.console import Console

    from dmlbench.common.console_progress import reporter_for
    from dmlbench.core import spec
    from dmlbench.datasets.base import DATASETS

    chosen = spec.parse(dataset, DATASETS)
    with reporter_for(Console(stderr=True)) as reporter:
        place = chosen.download(data_root, reporter)
    click.echo(f"{place}; look closer with: dmlbench data verify {dataset}")


def _print(report: Verification, cache: Path) -> None:
    click.echo(f"{report.name}{f' in {report.root}' if report.root else ''}")
    for part, found in report.found.items():
        official = report.official.get(part)
        said = "as officially" if found == official else f"officially {official}"
        name = "queries" if part == "test" and "gallery" in report.found else part
        click.echo(f"  {name:5} {found}{f', {said}' if official else ''}")
    if report.official_files and report.files:
        said = "as officially" if report.files == report.official_files else "not the official one"
        click.echo(f"  files {report.files[:16]}, {said}")
    if report.missing:
        number = counted(len(report.missing), "file", "files")
        click.echo(f"  missing: {number}: {listed(report.missing)}")
    if report.unreadable:
        bad = [f"{name} ({problem})" for name, problem in report.unreadable]
        number = counted(len(bad), "file", "files")
        click.echo(f"  unreadable: {number}: {listed(bad)}")
    if report.duplicates:
        groups = [" = ".join(group) for group in report.duplicates]
        number = counted(len(groups), "group of files", "groups of files")
        click.echo(f"  the same bytes: {number}: {listed(groups)}")
    for problem in report.unfit:
        click.echo(f"  {problem}")
    if report.shared:
        click.echo(f"  in both splits: {counted(report.shared, 'class', 'classes')}")
    for note in report.notes:
        click.echo(f"  {note}")
    if report.cache != "none":
        remedy = f": delete {cache}, and it is made again" if report.cache == "damaged" else ""
        click.echo(f"  decoded images: {report.cache}{remedy}")
    if report.sound:
        click.echo("sound")
