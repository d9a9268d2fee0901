"""Collect what each query was left with, of every model of a results folder, for the order of them.

    python -m scripts.order results/full/mini results/fashion-mini/outcomes.parquet

A row a query: suite, metric (ERS, Robust R@1), label, seed, query and value in percent. Models that
collapsed are left out, as boards do not rank them. The order is that of the models with three seeds
or more, over the seeds that all of these have.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dmlbench.analysis.order import Placed, order
from dmlbench.common.files import write_atomically
from dmlbench.metrics.names import ERS, WORST
from dmlbench.storage.store import Store

METRICS = (ERS, WORST)
LEAST_SEEDS = 3


def collect(results: Path) -> pd.DataFrame:
    """The outcomes of all models in ``results``."""
    store = Store(results)
    cells = store.cells()
    collapsed = {c.facts.get("checkpoint") for c in cells if c.findings.get("collapsed")}
    parts = []
    for cell in cells:
        about = cell.about
        for metric in METRICS:
            if metric not in cell.columns or cell.facts.get("checkpoint") in collapsed:
                continue
            values = store.outcomes(cell.id)[metric].dropna()
            rows: dict[str, Any] = {"suite": about.suite, "metric": metric, "label": about.label}
            rows |= {"seed": about.seed, "query": values.index, "value": values.to_numpy()}
            parts.append(pd.DataFrame(rows))
    found = pd.concat(parts, ignore_index=True)
    found["value"] = found["value"].astype(np.float32)
    keys = ["suite", "metric", "label", "seed", "query"]
    return found.sort_values(keys, ignore_index=True)


def orders(outcomes: pd.DataFrame) -> dict[tuple[str, str], list[Placed]]:
    """(suite, metric) -> the models in order, over the seeds that all of them have.

    Models with fewer than ``LEAST_SEEDS`` are left out.
    """
    found = {}
    for (suite, metric), part in outcomes.groupby(["suite", "metric"], sort=False):
        labels = {label: set(of["seed"]) for label, of in part.groupby("label")}
        labels = {label: of for label, of in labels.items() if len(of) >= LEAST_SEEDS}
        if not labels:
            continue
        seeds = sorted(set.intersection(*labels.values()))
        shared = part[part["seed"].isin(seeds)]
        wide = shared.pivot(index=["label", "seed"], columns="query", values="value")
        values = {str(label): np.asarray(wide.loc[label], dtype=np.float64) for label in labels}
        found[str(suite), str(metric)] = order(values)
    return found


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    collected = collect(source)
    target.parent.mkdir(exist_ok=True)
    write_atomically(target, collected.to_parquet(compression="zstd", index=False))
    for (suite, metric), places in orders(collected).items():
        print(suite, metric)
        for one in places:
            print(f"  {one.mean:5.1f} [{one.low:.1f}, {one.high:.1f}]  {one.rank:4.1f}  {one}")
