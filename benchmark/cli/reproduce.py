"""``dmlbench reproduce``: measure a row of a board or CSV again, and compare."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dmlbench.cli.options import PATH, once, options
from dmlbench.common.errors import EXIT_FAILED_CELLS
from dmlbench.common.text import one_line

if TYPE_CHECKING:
    from dmlbench.metrics.bootstrap import Estimate
    from dmlbench.submission.reproduce import Compared, Reproduction


@click.command(
    epilog="\b\nExamples:\n"
    "  dmlbench reproduce fashion-mini/hm --where suite=strict\n"
    "  dmlbench reproduce 'HM[S,g_LGA]&ICS' --from results/fashion.csv --where suite=ers\n"
    "  dmlbench reproduce hm --from yours.csv --where seed=1 --where 'attack=es|ltm'\n\n"
    "\b\nExit codes: 0 every number lies in the interval of the row, 1 one does not, 2 usage or\n"
    "input error."
)
@click.argument("row")
@click.option(
    "--from",
    "source",
    type=PATH,
    metavar="PATH",
    help="CSV with one row per metric, or a folder of such, as boards are rendered from. Default: "
    "results, or the card of a model of the zoo.",
)
@click.option(
    "--where",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Tells the rows of the model apart, or chooses among its attacks: seed=1, suite=auto, "
    "'attack=es|ltm'. May be repeated.",
)
@once("--dataset", help="Data set. Default: the row's.")
@click.option(
    "--checkpoint",
    type=PATH,
    metavar="FILE",
    help="Weights. Default: the row's, if the zoo has them; else they are trained.",
)
@click.option("--retrain", is_flag=True, help="Train the model even if its weights are to be had.")
@click.option(
    "--results",
    type=PATH,
    default="reproduced",
    show_default=True,
    help="Folder for what is trained and measured here; an interrupted reproduction goes on.",
)
@options("allow_code", "data_root", "cache", "device", "batch_size", "threads", "json")
def reproduce(
    row: str,
    source: Path | None,
    where: tuple[str, ...],
    dataset: str | None,
    checkpoint: Path | None,
    retrain: bool,
    results: Path,
    allow_code: bool,
    as_json: bool,
    **places: Any,
) -> None:
    """Measure a ROW of a board or CSV again: its model by defense, label, checkpoint or zoo name.

    The weights are fetched if the zoo has them, else trained by the row's recipe. Every number is
    held against the interval of the row's.
    """
    from dmlbench.submission.reproduce import reproduce as again

    found = again(
        *(row, results),
        source=source,
        where=where,
        dataset=dataset,
        checkpoint=checkpoint,
        retrain=retrain,
        allow_code=allow_code,
        **places,
    )
    if as_json:
        numbers = [asdict(one) | {"equal": one.equal} for one in found.numbers]
        click.echo(json.dumps(asdict(found) | {"equal": found.equal, "numbers": numbers}, indent=1))
    else:
        _print(found)
    if found.left_out:
        click.echo(f"note: left out: {found.left_out}", err=True)
    sys.exit(0 if found.equal else EXIT_FAILED_CELLS)


def _print(found: Reproduction) -> None:
    from dmlbench.report.terminal import print_grid

    several = len({one.queries for one in found.numbers if one.suite}) > 1

    def name(one: Compared) -> str:
        queries = f" of {one.queries or 'all'} queries" if several and one.suite else ""
        return one.heading + queries

    lines = []
    for one in found.numbers:
        identical = one.measured is not None and one.measured.value == one.stated.value
        how = "differs" if not one.equal else "identical" if identical else "equal"
        if not one.same_versions:
            how += " (another version of the definition)"
        texts = (one.suite or "clean", name(one), _text(one.stated), _text(one.measured), how)
        lines.append(texts)
    print_grid(("suite", "metric", "row", "here", ""), lines, names=("suite", "metric", ""))
    bits = "those of the row" if found.same_weights else "other last bits than the row's"
    click.echo(f"weights: {found.source}; {bits}")
    different = [name(one) for one in found.numbers if not one.equal]
    label = one_line(found.label)
    click.echo(
        f"{label} differs in {', '.join(different)}"
        if different
        else f"{label} is reproduced: {len(found.numbers)} numbers lie in their intervals"
    )


def _text(one: Estimate | None) -> str:
    if one is None:
        return "failed"
    interval = "" if one.low is None else f" [{one.low:.2f}, {one.high:.2f}]"
    return f"{one.value:.2f}{interval}"
