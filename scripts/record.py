"""Write measured rows to a CSV that also names device, code and torch version."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from dmlbench.compute.provenance import provenance

NEEDS_A_SECOND = ("transfer",)  # attacks that need a second network
CSV = click.option(
    "--csv",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the rows there.",
)


def save(path: Path | None, rows: Sequence[Mapping[str, Any]], device: torch.device) -> None:
    """Write ``rows`` to ``path``, each with device, threads, git commit and torch version."""
    if path is None:
        return
    if not rows:
        raise click.ClickException(f"nothing was measured, so {path} is not written")
    made = provenance(device)
    common = {"device": made.device, "threads": made.threads, "git": made.git}
    common["torch"] = made.libraries.get("torch", torch.__version__)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *common], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **common} for row in rows)


def spread(ratios: Sequence[float], digits: int = 2) -> str:
    """Median of the ratios of the repeats, with the least and the greatest: 1.07 [1.05, 1.11]."""
    shown = [f"{x:.{digits}f}" for x in (statistics.median(ratios), min(ratios), max(ratios))]
    return "{} [{}, {}]".format(*shown)
