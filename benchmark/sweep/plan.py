"""What a run consists of: its models, and the cells of each. Imports no torch, reads no image.

A model is known by its training run. Its cells are known by the digest of its weights, so of a
model that is not trained yet they are planned with ``UNTRAINED`` in its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dmlbench.analysis.records import BENIGN, ERS, WORST
from dmlbench.attacks.base import Attack
from dmlbench.common.errors import UserError
from dmlbench.common.hashing import file_sha256
from dmlbench.core import spec
from dmlbench.core.protocol import ERS_ATTACKS, Recipe, Threat
from dmlbench.core.reference import source_facts
from dmlbench.datasets.base import Dataset
from dmlbench.defenses.base import Defense
from dmlbench.metrics.ers import ERS_COLUMNS
from dmlbench.models.base import Model, shown_model
from dmlbench.storage.checkpoint import read_manifest
from dmlbench.storage.store import Cell, Store
from dmlbench.sweep.tasks import CellTask, Combine, Measure, PlannedAttack, Weights, new_cell
from dmlbench.training.job import Training

MEASURE_VERSION = 1  # raised when dmlbench.attacking changes what it measures

PERCENT = {"unit": "%", "better": "higher"}
WORST_OF = ("es", "ltm", "gtm")  # attacks that make an R@1
RECALLS = ("R@1", "ES:R", "LTM", "GTM")  # of the clean images, and of theirs
UNTRAINED = "untrained"  # in the place of a checkpoint's digest


def plan(
    dataset: Dataset,
    digest: str,
    network: Model,
    defenses: Sequence[Defense],
    seeds: Sequence[int],
    recipe: Recipe,
) -> list[Training]:
    """The models of a run: seeds within defenses, each configuration once."""
    card = dataset.protocol
    name, changes = spec.shown(dataset), _recipe_changes(recipe, card.recipe)
    trainings = []

    def resolve(defense: Defense) -> Defense:
        return defense.resolve(card.training_threat, network.metric)

    for complete in map(resolve, defenses):
        spelling = spec.shortest(complete, resolve)
        for seed in seeds:
            planned = Training(
                name, digest, network, complete, recipe, seed, spelling, recipe_changes=changes
            )
            trainings.append(planned)
    return list({training.id: training for training in trainings}.values())


def _recipe_changes(recipe: Recipe, usual: Recipe) -> str:
    """``epochs=2,lr=0.01``: the values of ``recipe`` that differ from the data set's usual ones."""
    return ",".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in spec.values(recipe).items()
        if value != getattr(usual, name)
    )


def shard(trainings: Sequence[Training], number: int, count: int) -> list[Training]:
    """The ``number``-th (from 1) of ``count`` parts, in the order of ``trainings``.

    A model is trained and measured in one shard. They are dealt out in the order of training cost
    and identity, so that shards differ by one model at most and each gets some of the dear ones;
    neither the order of the flags nor the machine matters.
    """
    dealt = sorted(trainings, key=lambda one: (-one.defense.training_cost, one.id))
    mine = {training.id for training in dealt[number - 1 :: count]}
    return [training for training in trainings if training.id in mine]


def planned_attacks(
    attacks: Sequence[Attack], threat: Threat, queries: int | None = None
) -> list[PlannedAttack]:
    """The attacks, resolved, each configuration once; on so many ``queries``, or on all."""
    found = []
    for attack in dict.fromkeys(attack.resolve(threat) for attack in attacks):
        suite = attack.suite or threat.suite
        suited = replace(threat, suite=suite)  # the row says its suite, so the attack need not
        facts = {
            "attack": attack.card.name,
            "attack_version": attack.card.version,
            "attack_values": spec.values(attack),
            **source_facts(attack, "attack_source"),
            **({} if queries is None else {"queries": queries}),
        }
        about = {
            "suite": suite,
            "queries": "" if queries is None else str(queries),
            "attack": spec.shortest(attack, lambda a, t=suited: a.resolve(t)),  # type: ignore[misc]
            "attack_resolved": spec.shown(attack),
        }
        columns = {c.name: {"unit": c.unit, "better": c.better} for c in attack.columns}
        found.append(PlannedAttack(attack, queries, facts, about, columns))
    return found


def trained_weights(
    training: Training, manifest: Mapping[str, Any] | None, store: Store, precision: str
) -> Weights:
    """The weights of a training; ``UNTRAINED`` is their digest as long as there is no manifest."""
    facts = {
        "checkpoint": manifest["sha256"] if manifest else UNTRAINED,
        "training": training.id,
        "data": training.digest,
        "model": training.model.facts,
    }
    folder = store.model_folder(training.id)
    path = folder / (manifest["checkpoint"] if manifest else "")
    return Weights(training.model, path, facts, training.about(precision))


def external_weights(
    dataset: Dataset,
    digest: str,
    model: Model,
    path: Path,
    label: str | None,
    seed: int,
    precision: str,
) -> Weights:
    """Weights from elsewhere; what their manifest says of them is used if one lies beside.

    Raises:
        UserError: they are not there.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    sha256 = file_sha256(path)
    known = read_manifest(path.parent) or {}
    if known.get("sha256") != sha256:
        known = {}
    facts = {"checkpoint": sha256, "data": digest, "model": model.facts}
    if known:
        facts["training"] = known["training_id"]
    name = label or known.get("label") or path.stem
    about = {
        "dataset": spec.shown(dataset),
        "model": shown_model(model),
        "distance": model.metric,
        "recipe": "",
        "defense": label or known.get("defense", name),
        "label": name,
        "resolved": known.get("resolved", ""),
        "training_cost": known.get("training_cost", 0),
        "seed": known["training"]["seed"] if known else seed,
        "precision": precision,
        "suite": "",
        "queries": "",
    }
    return Weights(model, path, facts, about)


def cells(weights: Weights, attacks: Sequence[PlannedAttack], seed: int) -> list[CellTask]:
    """The cells of the weights: clean, under each attack, the worst cases."""
    measured = measures(weights, attacks, seed)
    return [*measured, *combines(weights, measured)]


def measures(weights: Weights, attacks: Iterable[PlannedAttack], seed: int) -> list[Measure]:
    """The benign cell of the weights and one for each attack."""
    precision = weights.about["precision"]
    common = {**weights.facts, "measure_version": MEASURE_VERSION, "precision": precision}
    benign = new_cell({"kind": "benign", **common}, weights.about, dict.fromkeys(BENIGN, PERCENT))
    tasks = [Measure(weights, benign, None, seed, None)]
    for one in attacks:
        facts = {"kind": "attack", **common, **one.facts, "seed": seed}
        cell = new_cell(facts, weights.about | one.about, one.columns)
        tasks.append(Measure(weights, cell, one.attack, seed, one.queries))
    return tasks


def combines(weights: Weights, tasks: Sequence[Measure]) -> list[Combine]:
    """Of each suite Robust R@1 and ERS, where all that they need is there.

    Attacks count as the protocol has them. Where there are restarts of ES, LTM or GTM too, a
    second Robust R@1 takes them in, and is named after them.
    """
    found = []
    benign, attacked = tasks[0].cell, [task.cell for task in tasks[1:]]
    made_by = {k: v for k, v in weights.facts.items() if k in ("checkpoint", "training", "data")}

    def draw(attack: str, score: str, cells: Sequence[Cell], columns: Iterable[str]) -> None:
        sources = tuple((c["id"], n) for c in cells for n in c["columns"] if n in columns)
        kind, ids = attack.partition(":")[0], [cell_id for cell_id, _ in sources]
        about = cells[-1]["about"] | {"attack": attack, "attack_resolved": ""}
        cell = new_cell({"kind": kind, "cells": ids, **made_by}, about, {score: PERCENT})
        found.append(Combine(weights, cell, sources))

    for suite in dict.fromkeys(cell["about"]["suite"] for cell in attacked):
        same = {c["about"]["attack"]: c for c in attacked if c["about"]["suite"] == suite}
        if same.keys() >= set(WORST_OF):
            plain = [benign, *(same[name] for name in WORST_OF)]
            draw("worst case", WORST, plain, RECALLS)
            if restarted := _restarted(same):
                name = f"worst case:{' '.join(restarted)}"
                draw(name, WORST, [*plain, *restarted.values()], RECALLS)
        if weights.about["distance"] == "N" and same.keys() >= set(ERS_ATTACKS):
            draw(ERS, ERS, [same[name] for name in ERS_ATTACKS], ERS_COLUMNS)
    return found


def _restarted(cells: Mapping[str, Cell]) -> dict[str, Cell]:
    """``es:restarts=5`` -> cell: of ES, LTM and GTM those that differ in that alone.

    Of one attack that with the most starts: they are the first starts of more, and some.
    """
    most: dict[str, tuple[int, str]] = {}
    for attack in cells:
        name, _, changed = attack.partition(":")
        if name in WORST_OF and (count := re.fullmatch(r"restarts=(\d+)", changed)):
            most[name] = max(most.get(name, (0, "")), (int(count[1]), attack))
    return {most[name][1]: cells[most[name][1]] for name in WORST_OF if name in most}
