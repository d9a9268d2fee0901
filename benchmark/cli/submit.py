"""``dmlbench submit``: pack the rows of a model into one file that anyone can verify."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from dmlbench.cli.options import PATH, once, options
from dmlbench.cli.shared import warn_of_damage, weights_of


@click.command(
    epilog="\b\nExamples:\n"
    "  dmlbench submit hm --by 'Jane Doe' --out hm.zip\n"
    "  dmlbench submit hm --where suite=auto --where seed=0 --by 'Jane Doe' --out hm.zip\n"
    "  dmlbench submit hm --by 'Jane Doe' --weights-url https://example.org/hm.safetensors\n\n"
    "Then try it as those will who get it: dmlbench verify hm.zip",
)
@click.argument("model")
@click.option(
    "--where",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Only rows with that value, e.g. suite=auto or seed=1. May be repeated.",
)
@click.option("--by", required=True, metavar="NAME", help="Who hands the rows in.")
@click.option("--link", default="", metavar="URL", help="Address of a paper or of code (https).")
@click.option(
    "--out",
    type=PATH,
    default="submission.zip",
    show_default=True,
    metavar="FILE",
    help="The bundle that is written.",
)
@once("--dataset", help="Data set. Default: the rows'.")
@click.option(
    "--checkpoint",
    type=PATH,
    metavar="FILE",
    help="Weights. Default: the rows', in --results or in the zoo.",
)
@options("zoo")
@click.option(
    "--weights-url",
    default="",
    metavar="URL",
    help="Address of the file of weights (https), which is left out of the bundle then.",
)
@options("results", "data_root", "cache", "json")
def submit(
    model: str,
    where: tuple[str, ...],
    by: str,
    link: str,
    out: Path,
    dataset: str | None,
    checkpoint: Path | None,
    zoo: str | None,
    weights_url: str,
    results: Path,
    data_root: Path | None,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Pack the stored rows of MODEL (a defense, label or checkpoint) into a bundle: one .zip file.

    It holds rows, cells, the outcome of each query, weights or their address, hashes and the
    environment, and says whether the protocol is closed (the published recipe and suites,
    unchanged) or open, which is decided here and not by who hands it in. docs/bundle.md has the
    format.
    """
    from msgspec import to_builtins

    from dmlbench.storage.store import Store
    from dmlbench.submission.submit import submit as pack

    warn_of_damage(Store(results))
    packed = pack(
        *(model, results, out),
        by=by,
        link=link,
        where=where,
        dataset=dataset,
        checkpoint=weights_of(checkpoint, zoo),
        weights_url=weights_url,
        data_root=data_root,
        cache=cache,
    )
    made = packed.record
    for line in packed.left_out:
        click.echo(f"warning: left out: {line}", err=True)
    if as_json:
        click.echo(json.dumps(to_builtins(made), indent=1))
        return
    click.echo(f"{out}: {len(made.cells)} cells, {out.stat().st_size / 1e6:.1f} MB")
    click.echo(f"protocol: {made.protocol}{''.join(f'{chr(10)}  {one}' for one in made.changes)}")
    command = ["dmlbench", "verify", str(out), *["--allow-code"] * packed.runs_code]
    click.echo(f"Try it: {shlex.join(command)}")
