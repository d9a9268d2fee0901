"""The cross product: data set x model x defense x seed x attack, one idempotent run of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dmlbench import checkpoint, spec
from dmlbench.attacking import MEASURE_VERSION, evaluation
from dmlbench.attacks.base import Attack, Column
from dmlbench.compute import Compute
from dmlbench.datasets.base import Dataset, RetrievalData
from dmlbench.defenses.base import Defense
from dmlbench.errors import CellError, UserError
from dmlbench.identity import identity
from dmlbench.models.base import Model, canonical_model, parse_model
from dmlbench.progress import Reporter
from dmlbench.provenance import provenance
from dmlbench.recipe import Recipe
from dmlbench.store import Cell, Store
from dmlbench.training import Training, train


@dataclass(frozen=True)
class Job:
    """A model to train, and the attacks to measure it by; nothing is ``auto`` any more."""

    training: Training
    attacks: tuple[Attack, ...]
    dataset: Dataset

    @property
    def about(self) -> dict[str, Any]:
        """The row that this job's cells belong to."""
        defense, card, recipe = self.training.defense, self.dataset.protocol, self.training.recipe
        changed = [
            f"{name}={value:g}"
            for name, value in spec.values(recipe).items()
            if value != getattr(card.recipe, name)
        ]
        return {
            "dataset": self.training.dataset,
            "model": canonical_model(self.training.model),
            "recipe": ",".join(changed),
            "defense": spec.shortest(
                defense, lambda d: d.resolve(card.training_threat, self.training.model.metric)
            ),
            "label": defense.label,
            "training_cost": defense.training_cost,
            "seed": self.training.seed,
            "suite": card.suite,
        }


def plan(
    dataset: Dataset,
    data: RetrievalData,
    model: str | None,
    defenses: Sequence[Defense],
    attacks: Sequence[Attack],
    seeds: Sequence[int],
    recipe: Recipe | None = None,
) -> list[Job]:
    """The jobs of a run: seeds within defenses, each configuration once."""
    card = dataset.protocol
    network: Model = parse_model(model or card.model)
    resolved = tuple(dict.fromkeys(attack.resolve(card.threat) for attack in attacks))
    jobs = []
    for defense in defenses:
        complete = defense.resolve(card.training_threat, network.metric)
        for seed in seeds:
            training = Training(
                spec.canonical(dataset),
                data.digest,
                network,
                complete,
                recipe or card.recipe,
                seed,
            )
            jobs.append(Job(training, resolved, dataset))
    unique = {job.training.id: job for job in jobs}
    return list(unique.values())


def run(
    jobs: Sequence[Job], data: RetrievalData, store: Store, compute: Compute, reporter: Reporter
) -> list[Cell]:
    """Do what is not done yet and return the cells of all jobs, stored ones included.

    A cell that cannot yield a number is stored as failed and the run goes on; UserError (a
    corrupt checkpoint, a full disk) ends it, and what was finished stays.
    """
    cells: list[Cell] = []
    for job in jobs:
        cells += _run_job(job, data, store, compute, reporter)
    return cells


def _run_job(
    job: Job, data: RetrievalData, store: Store, compute: Compute, reporter: Reporter
) -> Iterator[Cell]:
    folder = store.model_folder(job.training.id)
    manifest = checkpoint.read_manifest(folder)
    if manifest is None:
        cell, manifest = _train(job, data, folder, store, compute, reporter)
        if cell is not None:
            yield cell
        if manifest is None:
            return
    facts = {
        "measure_version": MEASURE_VERSION,
        "data": data.digest,
        "model": canonical_model(job.training.model),
        "checkpoint": manifest["sha256"],
    }
    todo: list[tuple[dict[str, Any], Attack | None]] = [({"kind": "benign", **facts}, None)]
    for attack in job.attacks:
        identified = {
            "kind": "attack",
            **facts,
            "suite": job.dataset.protocol.suite,
            "attack": attack.card.name,
            "attack_version": attack.card.version,
            "attack_values": spec.values(attack),
            "seed": job.training.seed,
        }
        todo.append((identified, attack))
    missing = [item for item in todo if store.done(identity(item[0])) is None]
    if missing:
        _measure(job, missing, folder, data, store, compute, reporter)
    for identified, _ in todo:
        found = store.get(identity(identified))
        assert found is not None
        yield found


def _train(
    job: Job,
    data: RetrievalData,
    folder: Path,
    store: Store,
    compute: Compute,
    reporter: Reporter,
) -> tuple[Cell | None, dict[str, Any] | None]:
    """The manifest of the trained model, or the failed cell that says why there is none."""
    begun = time.time()
    try:
        return None, train(job.training, data, folder, compute, reporter)
    except CellError as error:
        cell = _cell(job, job.training.facts, None, compute, begun)
        cell |= {"status": "failed", "error": str(error)}
        store.put(cell)
        reporter.warn(f"{job.training.defense.label}: {error}")
        return cell, None


def _measure(
    job: Job,
    missing: Sequence[tuple[dict[str, Any], Attack | None]],
    folder: Path,
    data: RetrievalData,
    store: Store,
    compute: Compute,
    reporter: Reporter,
) -> None:
    model = job.training.model.build(data.channels, data.size)
    checkpoint.load_weights(folder / checkpoint.WEIGHTS, model)
    label, seed = job.training.defense.label, job.training.seed
    with evaluation(model, data, compute, reporter) as measured:
        for facts, attack in missing:
            begun = time.time()
            cell = _cell(job, facts, attack, compute, begun)
            title = f"{attack.card.name if attack else 'benign'} on {label} (seed {seed})"
            columns = {} if attack is None else {c.name: c for c in attack.columns}
            try:
                found = (
                    measured.benign() if attack is None else measured.attack(attack, seed, title)
                )
            except UserError:
                raise
            except Exception as error:  # whatever a plugin raises is a failed cell, not an abort
                cell |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
                reporter.warn(f"{title} failed: {cell['error']}")
            else:
                cell["status"] = "ok"
                cell["findings"] = found.facts
                cell["metrics"] = {
                    name: asdict(estimate) | _direction(columns.get(name))
                    for name, estimate in found.metrics.items()
                }
            cell["seconds"] = time.time() - begun
            store.put(cell)


def _direction(column: Column | None) -> dict[str, str]:
    """Unit and better direction; benign metrics are percentages, higher is better."""
    if column is None:
        return {"unit": "%", "better": "higher"}
    return {"unit": column.unit, "better": column.better}


def _cell(
    job: Job, facts: dict[str, Any], attack: Attack | None, compute: Compute, begun: float
) -> Cell:
    name = ""
    if attack is not None:
        name = spec.shortest(attack, lambda a: a.resolve(job.dataset.protocol.threat))
    return {
        "id": identity(facts),
        "facts": facts,
        "about": job.about | {"attack": name},
        "metrics": {},
        "started": begun,
        "seconds": time.time() - begun,
        "provenance": provenance(compute.torch_device()),
    }
