"""``dmlbench verify``: measure a sample of a bundle again, and accept or refuse it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dmlbench.cli.numbers import Whole
from dmlbench.cli.options import PATH, once, options
from dmlbench.common.errors import EXIT_FAILED_CELLS
from dmlbench.common.text import one_line

if TYPE_CHECKING:
    from dmlbench.submission.verify import Verdict


@click.command(
    epilog="\b\nExamples:\n  dmlbench verify hm.zip\n  dmlbench verify hm.zip --queries 500\n\n"
    "\b\nExit codes: 0 accepted, 1 refused, 2 it is no bundle, or cannot be verified here.\n\n"
    "Adversarial images of your own, against a stored row: dmlbench verify-attack"
)
@click.argument("bundle", type=PATH)
@click.option(
    "--queries",
    type=Whole(1),
    default=100,
    show_default=True,
    help="Queries of each attack that are measured again.",
)
@click.option(
    "--seed", type=Whole(), help="Seed that draws them. Default: a new one, which is printed."
)
@once("--dataset", help="Data set. Default: the bundle's.")
@options("allow_code", "data_root", "cache", "device", "batch_size", "threads", "json")
def verify(
    bundle: Path,
    queries: int,
    seed: int | None,
    dataset: str | None,
    allow_code: bool,
    as_json: bool,
    **places: Any,
) -> None:
    """Verify a BUNDLE that 'dmlbench submit' made: accept it, or refuse it with the numbers.

    Files must have their hashes, cells must be what this version plans for these weights and
    attacks, numbers must follow from the outcomes of the queries, and a random sample of these is
    measured again. Where a sample differs, all queries of that attack are. Nothing in the bundle is
    run.
    """
    from dmlbench.submission.verify import verify as look_at

    verdict = look_at(
        bundle, queries=queries, seed=seed, dataset=dataset, allow_code=allow_code, **places
    )
    if as_json:
        found = {
            "accepted": verdict.accepted,
            "reasons": verdict.reasons,
            "label": verdict.label,
            "seed": verdict.seed,
            "queries": verdict.queries,
            "protocol": verdict.bundle.protocol,
            "numbers": [asdict(one) for one in verdict.numbers],
        }
        click.echo(json.dumps(found, indent=1))
    else:
        _print(bundle, verdict)
    sys.exit(0 if verdict.accepted else EXIT_FAILED_CELLS)


def _print(path: Path, verdict: Verdict) -> None:
    from dmlbench.report.terminal import print_grid

    made = verdict.bundle
    lines = [
        (
            *(one_line(text) for text in (one.suite, one.attack or "clean", one.metric)),
            *(f"{number:.3f}" for number in (one.stated, one.claimed, one.measured)),
            *(str(one.n), str(one.differing), "refused" if one.refused else "agrees"),
        )
        for one in verdict.numbers
    ]
    if lines:
        heads = ("suite", "attack", "metric", "row", "claimed", "measured", "n", "differ", "")
        print_grid(heads, lines, names=("suite", "attack", "metric"))
        click.echo(
            "row: over all its queries; claimed, measured: over the n that were measured again "
            f"(seed {verdict.seed})"
        )
    who = f"{made.by}: {verdict.label} on {made.dataset}, {made.protocol} protocol"
    click.echo(one_line(who))
    for change in made.changes:
        click.echo(f"  {one_line(change)}")
    if verdict.accepted:
        click.echo(f"accepted: {path}")
    for reason in verdict.reasons:
        click.echo(f"refused: {one_line(reason)}")
