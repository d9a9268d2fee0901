"""The plan of a run: its models, and the cells of each. Imports no torch and reads no image.

The identity of a model is that of its training. The identity of a cell contains the digest of the
weights. As long as a model is not trained, ``UNTRAINED`` stands in place of this digest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from msgspec import ValidationError, convert, structs

from dmlbench.attacks import moved_query
from dmlbench.attacks.base import Attack, Column
from dmlbench.common.errors import UserError
from dmlbench.common.numbers import check_whole
from dmlbench.core import spec
from dmlbench.core.naming import at_other_radius, parameters, told_apart, with_attack_seed
from dmlbench.core.protocol import ERS_ATTACKS, RECALL_ATTACKS, Recipe, Threat, recipe_changes
from dmlbench.core.reference import foreign, source_facts
from dmlbench.datasets.base import Dataset
from dmlbench.defenses.base import Defense
from dmlbench.metrics.ers import ERS_COLUMNS
from dmlbench.metrics.names import ERS, RECALLED, WORST, WORST_CASE
from dmlbench.models.base import Model
from dmlbench.storage.cell import About, ColumnInfo, PlannedCell
from dmlbench.sweep.tasks import CellTask, Combine, Measure, PlannedAttack, Weights, new_cell
from dmlbench.sweep.weights import check_seeds
from dmlbench.training.job import Training

MEASURE_VERSION = 1  # is raised when a change of dmlbench.evaluation changes a number
DRAWS_VERSION = 2  # the same of randomised networks, whose numbers are means over draws

PERCENT = ColumnInfo("%", "higher")
WORST_CASE_COLUMNS = ("R@1", *RECALLED.values())  # of the clean images, and under attacks


def plan(
    dataset: Dataset,
    digest: str,
    network: Model,
    defenses: Sequence[Defense],
    seeds: Sequence[int],
    recipe: Recipe,
) -> list[Training]:
    """List the trainings of a run: for each defense in turn, one for each seed.

    Args:
        dataset: the data set.
        digest: digest of its content.
        network: the network that is trained.
        defenses: may have ``auto`` fields; the card of the data set completes them.
        seeds: of the trainings.
        recipe: the training hyper-parameters.

    Returns:
        Each configuration once, also if the arguments contain it twice.

    Raises:
        UserError: there is no seed, a seed is no whole number, or a defense is unfit.
    """
    if not len(seeds):
        raise UserError("name a seed (--seed 0, in Python seeds=[0])")
    check_seeds(seeds)
    card = dataset.protocol
    name, changes = spec.shown(dataset), recipe_changes(spec.values(recipe), card.recipe)

    def resolve(defense: Defense) -> Defense:
        with foreign(defense):
            return defense.resolve(card.training_threat, network.metric)

    complete = [resolve(defense) for defense in defenses]
    for defense in complete:
        _check_types(defense)
    spelt = [spec.shortest(one, resolve) for one in complete]
    names = told_apart([one.label for one in complete], [parameters(text) for text in spelt])
    trainings = [
        Training(name, digest, network, defense, recipe, seed, spelling, changes, shown)
        for defense, spelling, shown in zip(complete, spelt, names, strict=True)
        for seed in seeds
    ]
    return list({training.id: training for training in trainings}.values())


def _check_types(defense: Defense) -> None:
    """UserError unless what a defense of a plugin says of itself can stand in a table."""
    with foreign(defense):
        label, cost = defense.label, defense.training_cost
    if not isinstance(label, str):
        raise UserError(f"defense {defense.card.name}: its label must be a text, got {label!r}")
    check_whole(f"defense {defense.card.name}: its training_cost", cost, 0)


def shard(trainings: Sequence[Training], number: int, count: int) -> list[Training]:
    """Return part ``number`` (from 1) of ``count`` parts, in the order of ``trainings``.

    A model is trained and measured in the same part. Models are dealt out in the order of training
    cost and identity. Therefore the sizes of the parts differ by one model at most, each part gets
    some of the expensive ones, and neither the order of the flags nor the machine matters.
    """
    dealt = sorted(trainings, key=lambda one: (-one.defense.training_cost, one.id))
    mine = {training.id for training in dealt[number - 1 :: count]}
    return [training for training in trainings if training.id in mine]


def planned_attacks(
    attacks: Sequence[Attack],
    threat: Threat,
    queries: int | None = None,
    recalls: bool = False,
) -> list[PlannedAttack]:
    """Complete the attacks for one threat; each configuration once.

    Args:
        attacks: may have ``auto`` fields; the threat completes them.
        threat: the bounds of the adversary, and the suite.
        queries: number of test images that are perturbed; None: all.
        recalls: measure R@K and the distance moved (``attacks.moved_query``) as well. It changes no
            other number, so it is no part of an identity.
    """
    found = []
    for attack in dict.fromkeys(_resolved(attack, threat) for attack in attacks):
        suite = attack.suite or threat.suite
        suited = replace(threat, suite=suite)  # the row names the suite, so the attack does not
        facts = {
            "attack": attack.card.name,
            "attack_version": attack.version,
            "attack_values": attack.facts,
            **source_facts(attack, "attack_source"),
            **({} if queries is None else {"queries": queries}),
        }
        about = {
            "suite": suite,
            "queries": "" if queries is None else str(queries),
            "attack": spec.shortest(attack, lambda a, t=suited: a.resolve(t)),  # type: ignore[misc]
            "attack_resolved": spec.shown(attack),
        }
        extra = moved_query.columns_of(type(attack)) if recalls else ()
        with foreign(attack):
            columns = {c.name: _info(attack, c) for c in (*attack.headings(), *extra)}
        found.append(PlannedAttack(attack, queries, facts, about, columns, recalls))
    return found


def _resolved(attack: Attack, threat: Threat) -> Attack:
    with foreign(attack):
        return attack.resolve(threat)


def _info(attack: Attack, column: Column) -> ColumnInfo:
    try:
        return convert({"unit": column.unit, "better": column.better}, ColumnInfo)
    except ValidationError as error:  # of a plugin
        name = f"attack {attack.card.name}: its column {column.name}"
        raise UserError(f"{name} is wrong: {error}") from None


def cells(
    weights: Weights, attacks: Sequence[PlannedAttack], benign: Sequence[str]
) -> list[CellTask]:
    """List the cells of the weights: benign, one for each attack, and the combined scores.

    Where attacks have another seed than the training, their names in tables say so.
    """
    measured = measures(weights, attacks, benign)
    tasks: list[CellTask] = [*measured, *combines(weights, measured)]
    if weights.seed == weights.about.seed:
        return tasks
    return [_of_seed(task, weights.seed) for task in tasks]


def _of_seed(task: CellTask, seed: int) -> CellTask:
    about = task.cell.about
    if about.attack:
        about = structs.replace(about, attack=with_attack_seed(about.attack, seed))
    return replace(task, cell=structs.replace(task.cell, about=about))


def measures(
    weights: Weights, attacks: Iterable[PlannedAttack], benign: Sequence[str]
) -> list[Measure]:
    """List the measured cells of the weights: the benign one, and one for each attack.

    Args:
        weights: what is measured.
        attacks: complete.
        benign: the metrics of the clean images (``Dataset.benign``).
    """
    precision, distance = weights.about.precision, weights.about.distance
    version = measure_version(weights.about)
    common = {**weights.facts, "measure_version": version, "precision": precision}
    if weights.about.eot:
        common["eot"] = int(weights.about.eot)
    clean = new_cell({"kind": "benign", **common}, weights.about, dict.fromkeys(benign, PERCENT))
    tasks = [Measure(weights, clean, None, None)]
    for one in attacks:
        facts = {"kind": "attack", **common, **one.facts, "seed": weights.seed}
        facts["attack_version"] = one.attack.version_under(distance)
        cell = new_cell(facts, structs.replace(weights.about, **one.about), one.columns)
        tasks.append(Measure(weights, cell, one.attack, one.queries, one.recalls))
    return tasks


def measure_version(about: About) -> int:
    """The version of the measurement: randomised networks have their own."""
    return DRAWS_VERSION if about.eot else MEASURE_VERSION


def combines(weights: Weights, tasks: Sequence[Measure]) -> list[Combine]:
    """List the cells of Robust R@1 and ERS, for each suite that has all attacks they need.

    Each score is drawn once from the attacks of the protocol, and once more from each group of
    attacks that change the same keys to the same values, if ``eps`` is one of these keys:
    ``eps=4/255`` is then part of its name. If attacks of Robust R@1 were also run with restarts, a
    second Robust R@1 includes those, and their names are part of its name.
    """
    found = []
    benign, attacked = tasks[0].cell, [task.cell for task in tasks[1:]]
    made_by = {k: v for k, v in weights.facts.items() if k in ("checkpoint", "training", "data")}

    def draw(attack: str, score: str, cells: Sequence[PlannedCell], columns: Iterable[str]) -> None:
        sources = tuple((c.id, n) for c in cells for n in c.columns if n in columns)
        kind, ids = attack.partition(":")[0], [cell_id for cell_id, _ in sources]
        about = structs.replace(cells[-1].about, attack=attack, attack_resolved="")
        cell = new_cell({"kind": kind, "cells": ids, **made_by}, about, {score: PERCENT})
        found.append(Combine(weights, cell, sources))

    for suite in dict.fromkeys(cell.about.suite for cell in attacked):
        same = {c.about.attack: c for c in attacked if c.about.suite == suite}
        worst_of = RECALL_ATTACKS[suite]
        for changed, cells in _by_radius(same).items():
            variant = f":{changed}" if changed else ""
            if cells.keys() >= set(worst_of):
                plain = [benign, *(cells[name] for name in worst_of)]
                draw(f"{WORST_CASE}{variant}", WORST, plain, WORST_CASE_COLUMNS)
                if not changed and (restarted := _restarted(same, worst_of)):
                    name = f"{WORST_CASE}:{' '.join(restarted)}"
                    draw(name, WORST, [*plain, *restarted.values()], WORST_CASE_COLUMNS)
            if weights.about.distance == "N" and cells.keys() >= set(ERS_ATTACKS):
                draw(f"{ERS}{variant}", ERS, [cells[name] for name in ERS_ATTACKS], ERS_COLUMNS)
    return found


def _by_radius(cells: Mapping[str, PlannedCell]) -> dict[str, dict[str, PlannedCell]]:
    """The attacks in groups that change the same keys to the same values, eps among them.

    Returns:
        What a group changes, ``eps=4/255``, or "" for the attacks of the protocol -> name of the
        attack -> its cell.
    """
    found: dict[str, dict[str, PlannedCell]] = {"": {}}
    for attack, cell in cells.items():
        name, _, changed = attack.partition(":")
        if not changed or at_other_radius(attack):
            found.setdefault(changed, {})[name] = cell
    return found


def _restarted(cells: Mapping[str, PlannedCell], names: Sequence[str]) -> dict[str, PlannedCell]:
    """The cells of the attacks ``names`` that differ from the protocol in their restarts alone.

    Only the one with the most restarts of each attack is kept: its starts include those of the
    others.

    Returns:
        The spec of the attack, e.g. ``es:restarts=5`` -> its cell.
    """
    most: dict[str, tuple[int, str]] = {}
    for attack in cells:
        name, _, changed = attack.partition(":")
        if name in names and (count := re.fullmatch(r"restarts=(\d+)", changed)):
            most[name] = max(most.get(name, (0, "")), (int(count[1]), attack))
    return {most[name][1]: cells[most[name][1]] for name in names if name in most}
