"""Measure the time that the harness itself takes: ``python -m scripts.harness [--work]``.

- start-up: the shortest command; the others include it;
- planning: a run of 10,000 cells, of 1,000 models that are not trained, in an empty folder;
- resuming: a finished run of 1,000 cells (100 models with weights of 1.3 MB), including exports and
  board;
- attack cells (``--work``): the share of the attack itself in the time of a cell, on fashion-mini.

Cells and weights are invented, in a temporary folder. No test asserts a duration.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np
from msgspec.structs import replace

from dmlbench.attacks.base import ATTACKS
from dmlbench.common.hashing import file_sha256
from dmlbench.compute.device import Compute
from dmlbench.compute.provenance import provenance
from dmlbench.core import spec
from dmlbench.core.protocol import ERS_ATTACKS
from dmlbench.datasets.fashion import FashionMini
from dmlbench.defenses.base import DEFENSES
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.metrics.names import BENIGN
from dmlbench.models.base import parse_model
from dmlbench.storage import checkpoint
from dmlbench.storage.cell import Cell
from dmlbench.storage.store import Store
from dmlbench.sweep import plan
from dmlbench.sweep.tasks import Combine, Measure, Task
from dmlbench.sweep.weights import trained_weights

RESUMED = 100  # models of the run that is resumed
WEIGHTS_BYTES = 1_300_000
MADE = replace(provenance(None), device="cpu: none")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def seconds(*arguments: str, cwd: Path) -> tuple[float, float]:
    """Run a command of dmlbench; return its wall time and its CPU time in seconds."""
    begun, before = time.perf_counter(), os.times()
    command = [sys.executable, "-m", "dmlbench", *arguments]
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, env=ENVIRONMENT)
    after = os.times()
    cpu = sum(after[2:4]) - sum(before[2:4])
    return time.perf_counter() - begun, cpu


def shortest_of_three(*arguments: str, cwd: Path) -> str:
    """Run a command three times; return the shortest wall and CPU time as text."""
    runs = [seconds(*arguments, cwd=cwd) for _ in range(3)]
    wall, cpu = (min(times) for times in zip(*runs, strict=True))
    return f"{wall:.2f} s ({cpu:.2f} s of CPU)"


def arguments(models: int) -> list[str]:
    """Return the arguments of a run: that many models, half undefended, with ten cells each."""
    seeds = [word for seed in range(models // 2) for word in ("--seed", str(seed))]
    attacks = [word for name in ERS_ATTACKS[:-1] for word in ("--attack", name)]
    return ["run", "--defense", "hm", *attacks, *seeds]


def write_invented_results(store: Store) -> int:
    """Write invented results of a run of ``RESUMED`` models; return the number of cells."""
    dataset, card = FashionMini(), FashionMini().protocol
    defenses = [spec.parse(name, DEFENSES) for name in ("none", "hm")]
    trainings = plan.plan(
        dataset, FashionMini.known_digest, parse_model(card.model), defenses,
        range(RESUMED // 2), card.recipe,
    )  # fmt: skip
    attacks = plan.planned_attacks([ATTACKS.get(n)() for n in ERS_ATTACKS[:-1]], card.threat)
    count = 0
    for training in trainings:
        folder = store.model_folder(training.id)
        folder.mkdir(parents=True)
        (folder / checkpoint.WEIGHTS).write_bytes(os.urandom(WEIGHTS_BYTES))
        manifest = checkpoint.Manifest(
            schema=checkpoint.MANIFEST_SCHEMA,
            checkpoint=checkpoint.WEIGHTS,
            sha256=file_sha256(folder / checkpoint.WEIGHTS),
            training_id=training.id,
            training=training.facts,
            dataset=training.dataset,
            defense=training.spelling,
            label=training.defense.label,
            training_cost=training.defense.training_cost,
            parameters=0,
            history=[],
            seconds=1.0,
            started=0.0,
            provenance=MADE,
        )
        (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest.as_json()))
        weights = trained_weights(training, manifest, store, Compute())
        for task in plan.cells(weights, attacks, BENIGN):
            store.put(_row(task), dict.fromkeys(task.cell.columns, np.ones(1)))
            count += 1
    return count


def _row(task: Measure | Combine) -> Cell:
    one = Estimate(1.0, 0.0, 2.0, 1000)
    findings = {"clean": {}, "collapsed": False}
    return task.cell.measured(dict.fromkeys(task.cell.columns, one), findings, 0.0, 1.0, MADE)


def share_of_the_attack(folder: Path) -> list[str]:
    """Measure, for three attacks, the share of the attack in the wall time of its cell."""
    from dmlbench.attacks.base import Attack
    from dmlbench.cli.main import main as dmlbench
    from dmlbench.sweep.worker import Worker

    inside, lines = [], []
    run, do = Attack.run, Worker.do

    def timed_run(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        found = run(*args, **kwargs)
        inside.append(time.perf_counter() - begun)
        return found

    def timed_do(worker: Worker, task: Task) -> None:
        inside.clear()
        begun = time.perf_counter()
        do(worker, task)
        whole = time.perf_counter() - begun
        if isinstance(task, Measure) and task.attack is not None:
            lines.append(f"{task.title}: {sum(inside) / whole:.1%} of {whole:.1f} s in the attack")

    os.chdir(folder)
    attacks = [word for name in ("ca+", "qa+", "es") for word in ("--attack", name)]
    short = ["--recipe", "epochs=1", "--threads", "1", "--results", "work"]
    with patch.object(Attack, "run", timed_run), patch.object(Worker, "do", timed_do):
        dmlbench(["run", "--defense", "none", *attacks, *short], standalone_mode=False)
    return lines


@click.command()
@click.option("--work", is_flag=True, help="Also train and attack for a minute.")
def main(work: bool) -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        click.echo(f"start-up: {shortest_of_three('--version', cwd=folder)}; the others include it")
        took = shortest_of_three(*arguments(1000), "--dry-run", "--json", cwd=folder)
        click.echo(f"planning 10,000 cells: {took}")
        cells = write_invented_results(Store(folder / "results"))
        took = shortest_of_three(*arguments(RESUMED), cwd=folder)
        click.echo(f"resuming {cells} finished cells: {took}")
        if work:
            click.echo("\n".join(share_of_the_attack(folder)))


if __name__ == "__main__":
    main()
