"""``dmlbench verify-attack``: adversarial images from outside, against a stored row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dmlbench.cli.options import PATH, once, options
from dmlbench.cli.shared import check_outputs, weights_of

if TYPE_CHECKING:
    from dmlbench.metrics.bootstrap import Estimate
    from dmlbench.sweep.external import Verified


@click.command(
    "verify-attack",
    epilog="\b\nExamples:\n"
    "  dmlbench verify-attack mine.npz --row hm --by 'Jane Doe' --link https://example.org/paper\n"
    "  dmlbench verify-attack mine.npz --row hm:eta=8 --where suite=auto --by 'Jane Doe'\n\n"
    "\b\nThe file: numpy.savez('mine.npz', index=index, images=images), with\n"
    "  index   (n,) positions in the test split of the queries, each once; some are enough\n"
    "  images  (n, C, H, W) float32 in [0, 1], or uint8, in the ball around the clean queries",
)
@click.argument("file", type=PATH)
@click.option(
    "--row",
    required=True,
    metavar="MODEL",
    help="Model of the stored row: its defense as given to 'run', its label in tables, or its "
    "checkpoint.",
)
@click.option(
    "--where",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Tells the rows of the model apart, e.g. suite=auto or seed=1. May be repeated.",
)
@click.option("--by", required=True, metavar="NAME", help="Who made the images; tables show it.")
@click.option("--link", default="", metavar="URL", help="Address of a paper or of code.")
@once("--dataset", help="Data set. Default: the row's.")
@click.option(
    "--checkpoint", type=PATH, metavar="FILE", help="Weights. Default: the row's, in --results."
)
@options("zoo")
@once("--model", help="Network of --checkpoint.")
@options("allow_code", "results", "leaderboards", "data_root", "cache")
@options("device", "batch_size", "threads", "json")
def verify_attack(
    file: Path,
    row: str,
    where: tuple[str, ...],
    by: str,
    link: str,
    dataset: str | None,
    checkpoint: Path | None,
    zoo: str | None,
    model: str | None,
    allow_code: bool,
    results: Path,
    leaderboards: Path,
    as_json: bool,
    **places: Any,
) -> None:
    """Verify adversarial images in FILE; they join a row's worst case if they break more.

    Only the pixels are believed: they must lie in the ball that the row was attacked in, and what
    becomes of the queries is measured with the row's own weights and gallery. If a query falls that
    the row's attacks have left, its Robust R@1 is drawn again, and boards name who broke it.
    """
    from msgspec import to_builtins

    from dmlbench.analysis.external import Contributor
    from dmlbench.report.render import write_board
    from dmlbench.sweep.external import verify_file

    check_outputs(results, leaderboards, writing=False)
    found = verify_file(
        *(file, row, Contributor(by, link), results),
        where=where,
        dataset=dataset,
        checkpoint=weights_of(checkpoint, zoo),
        model=model,
        allow_code=allow_code,
        **places,
    )
    board = write_board(results, found.dataset, leaderboards)
    if as_json:
        click.echo(json.dumps(to_builtins(found), indent=1))
        return
    click.echo("\n".join(_lines(found)))
    if found.stored:
        click.echo(f"CSV:   {results / 'results.csv'}\nBoard: {board}")


def _lines(found: Verified) -> list[str]:
    """The result in words, one sentence per line."""
    lines = [
        f"verified: {found.images:,} images within {255 * found.eps:.4g}/255 of their queries; the "
        f"top-1 is right for {found.right:.1f}%"
    ]
    if found.others:
        lines.append(f"left out: {found.others:,} images of queries that the row does not attack")
    name = f"Robust R@1 of {found.label} (suite {found.suite})"
    if found.broken:
        lines.append(
            f"{name}: {_text(found.before)} to {_text(found.after)}; {found.broken:,} queries fell "
            f"that had stood. The row names {found.by}"
        )
    elif found.stored:
        lines.append(f"{name}: {_text(found.after)}. These images are part of it")
    else:
        lines.append(
            f"{name}: {_text(found.before)}, as it was: no query fell that had stood, so nothing "
            "is stored"
        )
    return lines


def _text(one: Estimate) -> str:
    return f"{one.value:.1f} [{one.low:.1f}, {one.high:.1f}]"
