"""Compare two models by the rows of CSVs, where the outcomes of single queries are not stored.

A CSV holds each number with its interval, so the interval of a difference over queries is that of
two independent numbers: the root of the sum of squares of their half widths. Of several seeds that
both models have, the differences are averaged; all seeds share the same queries, so the half widths
are averaged too, and the interval is over seeds and queries (``seeds.Spread``). NMI is left out:
its ``low`` and ``high`` are no interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from dmlbench.analysis.compare import SETTING, TRAINED, Difference, by_key, paired_seeds
from dmlbench.analysis.csv_files import read_tidy
from dmlbench.analysis.lookup import names_weights, refuse_several_sets
from dmlbench.analysis.records import Record
from dmlbench.analysis.seeds import over
from dmlbench.common.errors import UserError
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.metrics.names import OVER_STARTS
from dmlbench.zoo.registry import models

NAMES = ("defense", "label", "resolved")


def find(name: str, records: Iterable[Record], dataset: str | None) -> list[Record]:
    """The records of a model that have an interval.

    Args:
        name: its defense or its label, as the CSV spells it, the SHA-256 of its weights, of which
            the first digits are enough, or a model of the zoo, which brings its own rows.
        records: tidy records.
        dataset: spec of the data set; None: any.

    Raises:
        UserError: there are none, or several models have that name.
    """
    zoo = models().get(name)
    own = zoo.manifest.sha256 if zoo else name
    rows = [*read_tidy(zoo.rows), *records] if zoo else list(records)
    rows = [r for r in rows if r["status"] == "ok"]
    every = [r for r in rows if dataset in (None, r["dataset"])]
    named = [
        r
        for r in every
        if own in {r[key] for key in NAMES} or names_weights(own, r["checkpoint_sha256"])
    ]
    if not named:
        place = f" on {dataset}" if dataset else ""
        known = {
            f"{r['defense']} on {r['dataset']}" if place else r["defense"]
            for r in rows
            if r["defense"]
        }
        measured = ", ".join(sorted(known)) or "nothing"
        raise UserError(f"nothing was measured of {name!r}{place}; measured: {measured}")
    refuse_several_sets(name, (r["dataset"] for r in named))
    found = {(*(r[key] for key in TRAINED), r["checkpoint_sha256"]): r["seed"] for r in named}
    different = len({one[:-1] for one in found}) > 1 or len(found) > len(set(found.values()))
    if different:
        several = "; ".join(
            f"{digest[:12]} is {' '.join(filter(None, about))}" for *about, digest in sorted(found)
        )
        raise UserError(f"{name!r} is several models: name one by its weights ({several})")
    with_interval = [r for r in named if r["metric"] not in OVER_STARTS]
    return [
        r for r in with_interval if isinstance(r["low"], float) and isinstance(r["high"], float)
    ]


def compare(a: Iterable[Record], b: Iterable[Record], names: Sequence[str]) -> list[Difference]:
    """The differences b - a in all metrics that both have, over the seeds that both have.

    Raises:
        UserError: they share no metric.
    """
    ours, theirs = by_key(a), by_key(b)
    found = []
    for key, left in ours.items():
        right = theirs.get(key, {})
        seeds = paired_seeds(*({i: by for i, (_, by) in s.items()} for s in (left, right)))
        if not seeds:
            continue
        pairs = [(left[i][0], right[j][0]) for i, j in seeds]
        means = fmean(x["value"] for x, _ in pairs), fmean(y["value"] for _, y in pairs)
        # an interval need not be symmetric: each end of B - A has an end of both
        below, above = (fmean(ends) for ends in zip(*map(_reach, pairs), strict=True))
        first, n = pairs[0][0], min(r["n"] for pair in pairs for r in pair)
        estimate = over([y["value"] - x["value"] for x, y in pairs], Estimate(0, -below, above, n))
        about = {name: first[name] for name in ("suite", "attack", "metric", *SETTING, "better")}
        found.append(Difference(**about, a=means[0], b=means[1], difference=estimate, seeds=seeds))
    if not found:
        raise UserError(f"{names[0]} and {names[1]} share no measurement with an interval")
    return found


def _reach(pair: tuple[Record, Record]) -> tuple[float, float]:
    """The distances of the lower and the upper end of the interval over queries from B - A."""
    a, b = pair
    below = math.hypot(b["value"] - b["low"], a["high"] - a["value"])
    above = math.hypot(b["high"] - b["value"], a["value"] - a["low"])
    return below, above
