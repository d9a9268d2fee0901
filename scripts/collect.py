"""Collect the rows and outcomes of the finished models of a results folder.

    python -m scripts.collect results/full/mini results/fashion-mini

``rows.csv`` has what ``results.csv`` has, of the models that are finished: those with an ERS under
each suite, and a radius. ``outcomes.parquet`` has a row for each query of these: suite, metric,
label, seed, query and value. The metrics are ERS, Radius (in 1/255) and, without a suite, R@1 of
clean images. Models that collapsed are left out of it, as boards do not rank them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd

from dmlbench.analysis import csv_files, records
from dmlbench.common.files import write_atomically
from dmlbench.core.protocol import SUITES
from dmlbench.metrics.names import ERS
from dmlbench.storage.cell import Cell
from dmlbench.storage.store import Store

METRICS = ("R@1", ERS, "Radius")
NEEDED = {*((suite, ERS) for suite in SUITES), ("auto", "Radius")}


def finished(cells: Iterable[Cell]) -> list[Cell]:
    """The cells of the models that have all numbers."""
    by_model: dict[tuple[object, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        about = cell.about
        by_model[about.dataset, about.model, about.resolved, about.recipe, about.seed].append(cell)
    found = []
    for of in by_model.values():
        if {(cell.about.suite, name) for cell in of if cell.ok for name in cell.metrics} >= NEEDED:
            found += of
    return found


def outcomes(store: Store, cells: Iterable[Cell]) -> pd.DataFrame:
    """The outcomes of ``cells``, one row per query, as the protocol defines the scores."""
    cells = list(cells)
    collapsed = {cell.facts.get("checkpoint") for cell in cells if cell.findings.get("collapsed")}
    parts = []
    for cell in cells:
        about = cell.about
        for metric in METRICS:
            varied = ":" in about.attack or "external_files" in cell.facts
            if metric not in cell.columns or varied or cell.facts.get("checkpoint") in collapsed:
                continue
            values = store.outcomes(cell.id)[metric].dropna()
            rows: dict[str, Any] = {"suite": about.suite, "metric": metric, "label": about.label}
            rows |= {"seed": about.seed, "query": values.index, "value": values.to_numpy()}
            parts.append(pd.DataFrame(rows))
    found = pd.concat(parts, ignore_index=True)
    found["value"] = found["value"].astype(np.float32)
    keys = ["suite", "metric", "label", "seed", "query"]
    return found.sort_values(keys, ignore_index=True)


@click.command()
@click.argument("source", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.argument("target", type=click.Path(path_type=Path, file_okay=False))
def main(source: Path, target: Path) -> None:
    """Write both files, of the results folder SOURCE, into the folder TARGET."""
    store = Store(source)
    cells = finished(store.cells())
    if not cells:
        raise click.ClickException(f"{source} has no finished model, so nothing is written")
    target.mkdir(exist_ok=True)
    csv_files.write(target / "rows.csv", records.TIDY_COLUMNS, records.tidy(cells))
    kept = outcomes(store, cells).to_parquet(compression="zstd", index=False)
    write_atomically(target / "outcomes.parquet", kept)
    models = sorted({(cell.about.label, cell.about.seed) for cell in cells})
    print(f"{len(models)} models:", ", ".join(f"{label} {seed}" for label, seed in models))


if __name__ == "__main__":
    main()
