"""The strength of the suite auto: ``python -m scripts.strong CHECKPOINT... --results FOLDER``.

Each checkpoint is attacked on the same queries at each eps

- by the suite auto (its nine attacks, top1) and by the suite strict, with ES from five starts;
- by twenty attacks on the top-1 that differ in loss, optimizer, steps and starts.

The columns of the CSV, in percent of the queries (their top-1 is right under all of the attacks
named), but ERS and passes:

- clean: R@1 without an attack;
- strict, auto: Robust R@1 of the two suites; strict with ES from five starts;
- best: under the strongest of the twenty alone, whose name follows; twenty: under all of them;
- margin, dlr, knn (stages of top1), shift (ES that stops when the top-1 fails): broken by that
  attack alone, as one of its own;
- only dlr, only knn, only shift: broken by it and by none of the other three;
- ERS strict, ERS auto; ERS equal: of the nine attacks by APGD in as many steps as strict takes;
- passes strict, passes auto: forward-backward passes per query, measured.

Cells are stored in FOLDER, so that a measurement that was stopped goes on. With ``--cost`` the
two suites are timed instead, in turn, on few queries that are measured anew each time.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import numpy.typing as npt
import torch

import dmlbench
from dmlbench.attacks.base import ATTACKS
from dmlbench.compute.device import Compute
from dmlbench.core import spec
from dmlbench.core.protocol import ERS_ATTACKS, RECALL_ATTACKS, SUITE_ATTACKS, Threat
from dmlbench.datasets.base import DATASETS
from dmlbench.metrics.ers import ERS_COLUMNS, ers
from dmlbench.storage.store import Store
from scripts.record import CSV, save

RECALL = {
    "es": "ES:R",
    "ltm": "LTM",
    "gtm": "GTM",
    "top1": "Top1",
    "margin": "Margin",
    "dlr": "DLR",
    "knn": "KNN",
    "shift": "Shift",
}
STAGES = {
    "margin": "margin:suite=auto",
    "dlr": "dlr:restarts=1,suite=auto",
    "knn": "knn:restarts=1,suite=auto",
    "shift": "shift:restarts=1,suite=auto",
}
TWENTY = (
    "es:suite=strict",
    "es:restarts=5,suite=strict",
    "es:suite=ers",
    "es:restarts=1,suite=auto",
    "es:alpha=12/255,restarts=1,suite=strict",
    "ltm:suite=strict",
    "ltm:suite=auto",
    "ltm:restarts=1,suite=auto",
    "gtm:suite=strict",
    "gtm:suite=auto",
    "gtm:restarts=1,suite=auto",
    "margin:suite=strict",
    "margin:alpha=2/255,steps=100,restarts=1,suite=strict",
    "margin:restarts=3,steps=50,suite=auto",
    "dlr:suite=strict",
    "dlr:steps=200,suite=auto",
    "knn:alpha=12/255,suite=strict",
    "knn:suite=auto",
    "shift:restarts=3,steps=50,suite=auto",
    "shift:alpha=12/255,restarts=1,suite=strict",
)
if TYPE_CHECKING:
    import pandas as pd

Right = npt.NDArray[np.bool_]


def of_suite(name: str) -> list[str]:
    """The attacks of a suite, with its name; of strict with ES from five starts.

    ``equal`` is the suite auto without top1, in 32 steps.
    """
    if name == "equal":
        return [f"{attack}:steps=32,suite=auto" for attack in ERS_ATTACKS]
    specs = [f"{attack}:suite={name}" for attack in SUITE_ATTACKS[name] if attack != "radius"]
    return specs + ["es:restarts=5,suite=strict"] * (name == "strict")


def recall_attacks(suite: str) -> list[str]:
    """Those of its attacks that Robust R@1 is the worst case of."""
    return [spec for spec in of_suite(suite) if spec.partition(":")[0] in RECALL_ATTACKS[suite]]


def at(spec: str, eps: str) -> str:
    """The spec of an attack with the radius ``eps``."""
    return f"{spec},eps={eps}"


class Measured:
    """The cells of one checkpoint, by the spec of their attack."""

    def __init__(self, report: dmlbench.Report, threat: Threat) -> None:
        """Index the records of ``report``; ``threat`` is the adversary of its data set."""
        self.report, self.threat = report, threat
        self.records = {(r["attack_resolved"], r["metric"]): r for r in report.records}

    def resolved(self, spec_text: str) -> str:
        """The spec of an attack with every value, as records have it."""
        return spec.shown(spec.parse(spec_text, ATTACKS).resolve(self.threat))

    def outcomes(self, spec_text: str) -> pd.DataFrame:
        """The outcome of the attack for each query."""
        full, name = self.resolved(spec_text), spec_text.partition(":")[0]
        cell = self.records[full, RECALL[name]]["cell"]
        return self.report.outcomes[cell].dropna(how="all")

    def right(self, *specs: str) -> Right:
        """True for each query whose top-1 is right under all of the attacks."""
        columns = [(self.outcomes(one), RECALL[one.partition(":")[0]]) for one in specs]
        found: Right = np.all([frame[name].to_numpy() > 0 for frame, name in columns], axis=0)
        return found

    def clean(self, spec_text: str) -> Right:
        """True for each query whose top-1 is right without the attack."""
        name = RECALL[spec_text.partition(":")[0]]
        found: Right = self.outcomes(spec_text)[f"{name} clean"].to_numpy() > 0
        return found

    def ers(self, suite: str, eps: str) -> float:
        """ERS of a suite; NaN where the metric is not N."""
        names = [at(one, eps) for one in of_suite(suite) if "restarts" not in one]
        full = {self.resolved(one) for one in names}
        values = {m: r["value"] for (a, m), r in self.records.items() if a in full}
        return ers({name: values[name] for name in ERS_COLUMNS})

    def passes(self, suite: str, eps: str, store: Store) -> float:
        """Forward-backward passes per query that the attacks of a suite took in all."""
        full = {self.resolved(at(one, eps)) for one in of_suite(suite)}
        cells = {r["cell"] for (a, _), r in self.records.items() if a in full}
        stored = [store.get(cell) for cell in cells]
        return float(sum(cell.findings["passes"] for cell in stored if cell is not None))


def percent(right: Right) -> float:
    """The share of true entries in percent."""
    return round(100 * float(right.mean()), 1)


def row(found: Measured, eps: str, store: Store) -> dict[str, Any]:
    """The line of one checkpoint at one eps."""
    twenty = {one: found.right(at(one, eps)) for one in TWENTY}
    best = min(twenty, key=lambda one: twenty[one].mean())
    clean = found.clean(at(STAGES["margin"], eps))
    broken = {name: clean & ~found.right(at(one, eps)) for name, one in STAGES.items()}
    alone = {
        f"only {name}": percent(one & ~np.any([b for k, b in broken.items() if k != name], axis=0))
        for name, one in broken.items()
        if name != "margin"
    }
    suites = {
        name: percent(found.right(*(at(one, eps) for one in recall_attacks(name))))
        for name in ("strict", "auto")
    }
    return {
        "label": found.report.records[0]["label"],
        "checkpoint": found.report.records[0]["checkpoint_sha256"][:16],
        "dataset": found.report.records[0]["dataset"],
        "seed": found.report.records[0]["seed"],
        "eps": eps,
        "queries": len(clean),
        "clean": percent(clean),
        **suites,
        "best": percent(twenty[best]),
        "best attack": best,
        "twenty": percent(np.all(list(twenty.values()), axis=0)),
        **{name: percent(one) for name, one in broken.items()},
        **alone,
        **{f"ERS {name}": round(found.ers(name, eps), 1) for name in ("strict", "equal", "auto")},
        **{f"passes {name}": round(found.passes(name, eps, store), 1) for name in suites},
    }


def timed(checkpoint: Path, dataset: str, eps: str, queries: int, repeats: int) -> dict[str, Any]:
    """The cost of the two suites on one checkpoint, measured in turn."""
    seconds: dict[str, list[float]] = {"strict": [], "auto": []}
    for _ in range(repeats):
        for suite, spent in seconds.items():
            attacks = [at(one, eps) for one in of_suite(suite)]
            begun = time.perf_counter()
            report = dmlbench.evaluate(
                checkpoint, dataset, attacks=attacks, queries=queries, threads=1, progress=False
            )
            spent.append(time.perf_counter() - begun)
            if report.failed:
                raise click.ClickException(str(report.failed))
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    medians = {f"s {suite}": round(statistics.median(v), 1) for suite, v in seconds.items()}
    label = report.records[0]["label"]
    return (
        {"label": label, "eps": eps, "queries": queries}
        | medians
        | {"auto / strict": round(statistics.median(ratios), 2)}
    )


@click.command()
@click.argument(
    "checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True)
)
@click.option("--dataset", default="fashion", show_default=True, help="Spec of the data set.")
@click.option("--queries", default=200, show_default=True, help="Queries to attack.")
@click.option("--eps", "radii", multiple=True, default=["26/255", "77/255"], show_default=True)
@click.option("--results", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--cost", is_flag=True, help="Time the suites instead.")
@click.option("--repeats", default=3, show_default=True, help="Of the timing.")
@CSV
def main(
    checkpoints: tuple[Path, ...],
    dataset: str,
    queries: int,
    radii: tuple[str, ...],
    results: Path,
    cost: bool,
    repeats: int,
    path: Path | None,
) -> None:
    """Attack each of CHECKPOINTS by two suites and twenty attacks."""
    threat = spec.parse(dataset, DATASETS).protocol.threat
    lines = []
    with Compute("cpu", threads=1).applied():  # so that the CSV says how it was measured
        for checkpoint in checkpoints:
            for eps in radii:
                if cost:
                    lines.append(timed(checkpoint, dataset, eps, queries, repeats))
                else:
                    specs = [
                        *of_suite("strict"),
                        *of_suite("equal"),
                        *of_suite("auto"),
                        *STAGES.values(),
                        *TWENTY,
                    ]
                    report = dmlbench.evaluate(
                        checkpoint,
                        dataset,
                        attacks=[at(one, eps) for one in dict.fromkeys(specs)],
                        queries=queries,
                        threads=1,
                        results=results,
                    )
                    lines.append(row(Measured(report, threat), eps, Store(results)))
                click.echo("  ".join(f"{key} {value}" for key, value in lines[-1].items()))
                save(path, lines, torch.device("cpu"))


if __name__ == "__main__":
    main()
