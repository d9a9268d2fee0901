"""The order of the models whose outcomes were collected, under each suite."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dmlbench.analysis.order import Placed, order

LEAST_SEEDS = 3


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
