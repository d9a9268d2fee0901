"""The cross product: data set x model x defense x seed x attack, one idempotent run of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dmlbench import checkpoint, spec
from dmlbench.attacking import MEASURE_VERSION, Evaluation, Measurement, evaluation
from dmlbench.attacks.base import Attack
from dmlbench.compute import Compute
from dmlbench.datasets.base import Dataset, RetrievalData
from dmlbench.defenses.base import Defense
from dmlbench.errors import UserError
from dmlbench.identity import file_sha256, identity
from dmlbench.metrics.bootstrap import bootstrap_mean
from dmlbench.models.base import Model, canonical_model
from dmlbench.progress import Reporter
from dmlbench.provenance import provenance
from dmlbench.recipe import Recipe, Threat
from dmlbench.store import Cell, Store
from dmlbench.tables import BENIGN, WORST
from dmlbench.training import Training, train

PERCENT = {"unit": "%", "better": "higher"}
WORST_OF = {"es": "ES:R", "ltm": "LTM", "gtm": "GTM"}  # attacks that make an R@1


@dataclass(frozen=True)
class Subject:
    """Weights to measure.

    Attributes:
        model: the network.
        weights: the checkpoint file.
        facts: what of it decides a number: checkpoint digest, training run, network.
        about: the row that its cells belong to.
    """

    model: Model
    weights: Path
    facts: dict[str, Any]
    about: dict[str, Any]


@dataclass(frozen=True)
class Session:
    """What the cells of a run have in common."""

    dataset: Dataset
    data: RetrievalData
    store: Store
    compute: Compute
    reporter: Reporter


@dataclass(frozen=True)
class Job:
    """A model to train, with nothing ``auto``."""

    training: Training
    dataset: Dataset

    def about(self, precision: str) -> dict[str, Any]:
        """The row of the model, before any suite."""
        defense, card, recipe = self.training.defense, self.dataset.protocol, self.training.recipe
        changed = [
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in spec.values(recipe).items()
            if value != getattr(card.recipe, name)
        ]
        return {
            "dataset": self.training.dataset,
            "model": canonical_model(self.training.model),
            "distance": self.training.model.metric,
            "recipe": ",".join(changed),
            "defense": self.training.spelling,
            "label": defense.label,
            "resolved": spec.canonical(defense),
            "training_cost": defense.training_cost,
            "seed": self.training.seed,
            "precision": precision,
            "suite": "",
        }


def plan(
    dataset: Dataset,
    data: RetrievalData,
    network: Model,
    defenses: Sequence[Defense],
    seeds: Sequence[int],
    recipe: Recipe,
) -> list[Job]:
    """The models of a run: seeds within defenses, each configuration once."""
    card = dataset.protocol
    name = spec.canonical(dataset)
    jobs = []

    def resolve(defense: Defense) -> Defense:
        return defense.resolve(card.training_threat, network.metric)

    for complete in map(resolve, defenses):
        spelling = spec.shortest(complete, resolve)
        for seed in seeds:
            training = Training(name, data.digest, network, complete, recipe, seed, spelling)
            jobs.append(Job(training, dataset))
    return list({job.training.id: job for job in jobs}.values())


def run(jobs: Sequence[Job], attacks: Sequence[Attack], session: Session) -> list[Cell]:
    """Do what is not done yet and return the cells of all jobs, stored ones included.

    A cell that cannot yield a number is stored as failed and the run goes on; UserError (a
    corrupt checkpoint, a full disk) ends it, and what was finished stays.
    """
    cells: list[Cell] = []
    for job in jobs:
        subject = _train(job, session)
        if isinstance(subject, Subject):
            cells += measure(subject, attacks, job.training.seed, session)
        else:
            cells.append(subject)
    return cells


def external(
    model: Model, weights: Path, session: Session, label: str | None, seed: int
) -> Subject:
    """Weights from elsewhere; what their manifest says of them is used if one lies beside."""
    if not weights.is_file():
        raise UserError(f"checkpoint {weights} does not exist")
    digest = file_sha256(weights)
    known = checkpoint.read_manifest(weights.parent) or {}
    if known.get("sha256") != digest:
        known = {}
    facts = {"checkpoint": digest, "data": session.data.digest, "model": model.facts}
    if known:
        facts["training"] = known["training_id"]
    name = label or known.get("label") or weights.stem
    about = {
        "dataset": spec.canonical(session.dataset),
        "model": canonical_model(model),
        "distance": model.metric,
        "recipe": "",
        "defense": label or known.get("defense", name),
        "label": name,
        "resolved": known.get("resolved", ""),
        "training_cost": known.get("training_cost", 0),
        "seed": known["training"]["seed"] if known else seed,
        "precision": session.compute.precision,
        "suite": "",
    }
    return Subject(model, weights, facts, about)


def measure(subject: Subject, attacks: Sequence[Attack], seed: int, session: Session) -> list[Cell]:
    """The benign cell of the weights and one for each attack; what is stored is not redone."""
    threat = session.dataset.protocol.threat
    common = {
        **subject.facts,
        "measure_version": MEASURE_VERSION,
        "precision": session.compute.precision,
    }
    benign = _cell({"kind": "benign", **common}, subject.about, dict.fromkeys(BENIGN, PERCENT))
    planned: list[tuple[Cell, Attack | None]] = [(benign, None)]
    for attack in dict.fromkeys(attack.resolve(threat) for attack in attacks):
        planned.append((_attack_cell(attack, subject.about, common, seed, threat), attack))
    missing = [item for item in planned if session.store.done(item[0]["id"]) is None]
    if missing:
        model = subject.model.build(session.data.channels, session.data.size)
        checkpoint.load_weights(subject.weights, model)
        with evaluation(model, session.data, session.compute, session.reporter) as measured:
            for cell, chosen in missing:
                _fill(cell, chosen, seed, measured, session)
    cells = [found for cell, _ in planned if (found := session.store.get(cell["id"])) is not None]
    return cells + _worst_cases(cells, session)


def _attack_cell(
    attack: Attack, about: dict[str, Any], common: dict[str, Any], seed: int, threat: Threat
) -> Cell:
    """The planned cell of a resolved attack."""
    facts = {
        "kind": "attack",
        **common,
        "attack": attack.card.name,
        "attack_version": attack.card.version,
        "attack_values": spec.values(attack),
        "seed": seed,
    }
    suite = attack.suite or threat.suite
    suited = replace(threat, suite=suite)  # the row says its suite, so the attack need not
    named = about | {
        "suite": suite,
        "attack": spec.shortest(attack, lambda a: a.resolve(suited)),
        "attack_resolved": spec.canonical(attack),
    }
    columns = {c.name: {"unit": c.unit, "better": c.better} for c in attack.columns}
    return _cell(facts, named, columns)


def _train(job: Job, session: Session) -> Subject | Cell:
    """The weights of a job, trained if they are not there; a failed cell if that fails."""
    folder = session.store.model_folder(job.training.id)
    about = job.about(session.compute.precision)
    manifest = checkpoint.read_manifest(folder, job.training.facts)
    failed = _cell(job.training.facts, about, {})
    if manifest is None:
        begun = time.time()
        try:
            manifest = train(job.training, session.data, folder, session.compute, session.reporter)
        except UserError:
            raise
        except Exception as error:  # whatever a plugin raises is a failed cell, not an abort
            _fail(failed, error, begun, f"training {job.training.defense.label}", session)
            return failed
    session.store.remove(failed["id"])
    facts = {
        "checkpoint": manifest["sha256"],
        "training": job.training.id,
        "data": session.data.digest,
        "model": job.training.model.facts,
    }
    return Subject(job.training.model, folder / manifest["checkpoint"], facts, about)


def _fill(
    cell: Cell, attack: Attack | None, seed: int, measured: Evaluation, session: Session
) -> None:
    """Measure a cell and store it, failed or not."""
    begun = time.time()
    name = attack.card.name if attack else "benign"
    title = f"{name} on {cell['about']['label']} (seed {seed})"
    try:
        found = measured.benign() if attack is None else measured.attack(attack, seed, title)
    except UserError:
        raise
    except Exception as error:  # whatever a plugin raises is a failed cell, not an abort
        _fail(cell, error, begun, title, session)
    else:
        _succeed(cell, found, begun, session)


def _worst_cases(cells: Sequence[Cell], session: Session) -> list[Cell]:
    """Robust R@1 of each suite whose ES, LTM and GTM are there as the protocol has them.

    A query counts if its top-1 is right on the clean image and under each of the three: what
    AutoAttack's per-example worst case is to classification.
    """
    benign = next(
        (c for c in cells if c["facts"]["kind"] == "benign" and c["status"] == "ok"), None
    )
    found = []
    for suite in dict.fromkeys(c["about"]["suite"] for c in cells if c["about"]["suite"]):
        parts = {
            c["about"]["attack"]: c
            for c in cells
            if c["about"]["suite"] == suite and c["status"] == "ok"
        }
        if benign is None or not WORST_OF.keys() <= parts.keys():
            continue
        sources = [benign, *(parts[name] for name in WORST_OF)]
        facts = {
            "kind": "worst case",
            "cells": [c["id"] for c in sources],
            **{k: benign["facts"][k] for k in ("checkpoint", "training") if k in benign["facts"]},
        }
        about = benign["about"] | {"suite": suite, "attack": "worst case"}
        cell = _cell(facts, about, {WORST: PERCENT})
        if session.store.done(cell["id"]) is None:
            begun = time.time()
            columns = [session.store.outcomes(benign["id"])["R@1"].to_numpy()]
            columns += [
                session.store.outcomes(parts[name]["id"])[column].to_numpy()
                for name, column in WORST_OF.items()
            ]
            worst = np.min(columns, axis=0)
            measurement = Measurement({WORST: bootstrap_mean(worst)}, {}, {WORST: worst})
            _succeed(cell, measurement, begun, session)
        found.append(session.store.get(cell["id"]) or cell)
    return found


def _cell(facts: dict[str, Any], about: dict[str, Any], columns: dict[str, Any]) -> Cell:
    named = {"attack": "", "attack_resolved": ""} | about
    return {"id": identity(facts), "facts": facts, "about": named, "columns": columns}


def _succeed(cell: Cell, found: Measurement, begun: float, session: Session) -> None:
    cell["status"] = "ok"
    cell["metrics"] = {name: asdict(estimate) for name, estimate in found.metrics.items()}
    cell["findings"] = found.findings
    _put(cell, begun, session, found)


def _fail(cell: Cell, error: Exception, begun: float, title: str, session: Session) -> None:
    kind = "" if type(error).__module__ == "dmlbench.errors" else f"{type(error).__name__}: "
    cell |= {"status": "failed", "error": f"{kind}{error}", "metrics": {}, "findings": {}}
    session.reporter.warn(f"{title} failed: {cell['error']}")
    _put(cell, begun, session, None)


def _put(cell: Cell, begun: float, session: Session, found: Measurement | None) -> None:
    cell["started"], cell["seconds"] = begun, time.time() - begun
    cell["provenance"] = provenance(session.compute.torch_device())
    session.store.put(cell, None if found is None else found.outcomes)
