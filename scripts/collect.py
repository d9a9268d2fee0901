"""Collect the rows and outcomes of the finished models of a results folder.

    python -m scripts.collect results/full/mini results/fashion-mini/{rows.csv,outcomes.parquet}

The first file has what ``results.csv`` has, of the models that are finished: those with an ERS
under each suite, and a radius. The second has a row for each query of these: suite, metric, label,
seed, query and value. The metrics are ERS, Radius (in 1/255) and, without a suite, R@1 of clean
images. Models that collapsed are left out of it, as boards do not rank them.

What the files have of other models stays, so models may be measured on several machines.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
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
KEYS = ["suite", "metric", "label", "seed", "query"]
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
    return found.sort_values(KEYS, ignore_index=True)


def join_rows(path: Path, cells: Iterable[Cell]) -> None:
    """Write the rows of ``cells`` into a CSV; those of other models that are there stay."""
    with TemporaryDirectory() as folder:
        draft = Path(folder) / path.name
        csv_files.write(draft, records.TIDY_COLUMNS, records.tidy(cells))
        new = _texts(draft)
        models = {_model(row) for row in new}
        rows = [row for row in _texts(path) if _model(row) not in models] + new
        csv_files.write(draft, records.TIDY_COLUMNS, rows)
        keys = map(records.record_order, csv_files.read_tidy(draft))
        ordered = [row for _, row in sorted(zip(keys, rows, strict=True), key=lambda one: one[0])]
    csv_files.write(path, records.TIDY_COLUMNS, ordered)


def _texts(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV as they are written; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _model(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[key] for key in records.MODEL)


def join_outcomes(path: Path, found: pd.DataFrame) -> None:
    """Write outcomes into a Parquet file; those of other labels and seeds that are there stay."""
    if path.exists():
        there = pd.read_parquet(path)
        models = set(zip(found["label"], found["seed"], strict=True))
        others = [one not in models for one in zip(there["label"], there["seed"], strict=True)]
        found = pd.concat([there[others], found]).sort_values(KEYS, ignore_index=True)
    write_atomically(path, found.to_parquet(compression="zstd", index=False))


@click.command()
@click.argument("source", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.argument("rows", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("queries", type=click.Path(path_type=Path, dir_okay=False))
def main(source: Path, rows: Path, queries: Path) -> None:
    """Write what the results folder SOURCE has into the CSV ROWS and the Parquet file QUERIES."""
    store = Store(source)
    cells = finished(store.cells())
    if not cells:
        raise click.ClickException(f"{source} has no finished model, so nothing is written")
    join_rows(rows, cells)
    join_outcomes(queries, outcomes(store, cells))
    models = sorted({(cell.about.label, cell.about.seed) for cell in cells})
    print(f"{len(models)} models:", ", ".join(f"{label} {seed}" for label, seed in models))


if __name__ == "__main__":
    main()
