"""The order of the models whose outcomes were collected, under each suite."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd

from dmlbench.analysis.order import Placed, order

LEAST_SEEDS = 3


def orders(
    outcomes: pd.DataFrame, metric: str, unranked: Collection[str] = ()
) -> dict[str, list[Placed]]:
    """Suite -> the models in order, over the seeds that all of them have.

    Those with fewer than ``LEAST_SEEDS`` seeds, and those that boards do not rank, are left out;
    and so is a suite in which the others share fewer.
    """
    found = {}
    kept = outcomes[(outcomes["metric"] == metric) & ~outcomes["label"].isin(unranked)]
    for suite, part in kept.groupby("suite", sort=False):
        labels = {label: set(of["seed"]) for label, of in part.groupby("label")}
        labels = {label: of for label, of in labels.items() if len(of) >= LEAST_SEEDS}
        if not labels:
            continue
        seeds = sorted(set.intersection(*labels.values()))
        if len(seeds) < LEAST_SEEDS:
            continue
        shared = part[part["seed"].isin(seeds)]
        wide = shared.pivot(index=["label", "seed"], columns="query", values="value")
        values = {str(label): np.asarray(wide.loc[label], dtype=np.float64) for label in labels}
        found[str(suite)] = order(values)
    return found
