"""Warnings of what tables would put in one column, or in one mean, although it differs.

The usual radius of a data set is not in the name of a column, and nor is the code of a network, a
defense or an attack from a file: two versions of a file have the same name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dmlbench.core.naming import parameters, seeds_in_words
from dmlbench.storage.cell import ORDER, About
from dmlbench.storage.store import Store
from dmlbench.sweep.status import PlannedModel, StoredCells
from dmlbench.training.job import Training


def warn_of_mixtures(models: Sequence[PlannedModel], known: StoredCells, store: Store) -> None:
    """Warn of stored numbers that differ from those of this run in what no table says.

    Args:
        models: the models of the run with their cells.
        known: the stored cells.
        store: the results folder.
    """
    trainings = [model.train.training for model in models if model.train is not None]
    found = [
        *_other_radius(models, known),
        *_other_attack_code(models, known),
        *_other_training_code(trainings, store),
    ]
    for line in dict.fromkeys(found):
        warnings.warn(line, stacklevel=4)


def _other_radius(models: Sequence[PlannedModel], known: StoredCells) -> Iterable[str]:
    """A data set of the same name that was attacked within another radius.

    Those of registered data sets never change, so this is for ``from_arrays`` and for classes of
    the user.
    """
    stored = {_adversary(cell.about) for cell in known.cells.values() if cell.ok}
    for task, _ in (one for model in models for one in model.cells):
        attacked, eps = _adversary(task.cell.about)
        if others := {other for same, other in stored if same == attacked and other and eps} - {
            eps
        }:
            dataset, _, attack = attacked
            return [
                f"{attack} on {dataset} has eps {eps} here, and {', '.join(sorted(others))} in "
                "stored results: tables show both in one column, so give the data sets names of "
                "their own"
            ]
    return []


def _adversary(about: About) -> tuple[tuple[str, str, str], str]:
    """Data set, suite and attack, as tables name them; and the radius, empty for clean images."""
    return (about.dataset, about.suite, about.attack), parameters(about.attack_resolved).get(
        "eps", ""
    )


def _other_attack_code(models: Sequence[PlannedModel], known: StoredCells) -> Iterable[str]:
    """An attack whose code was another one when models outside this run were measured."""
    planned = [task.cell for model in models for task, _ in model.cells]
    coded = [cell for cell in planned if "attack_source" in cell.facts]
    if not coded:
        return
    measured = (cell for cell in known.cells.values() if cell.ok and "attack_source" in cell.facts)
    latest = {_number(cell.about): cell for cell in sorted(measured, key=lambda one: one.started)}
    for cell in planned:
        latest.pop(_number(cell.about), None)
    for cell in coded:
        column, code = _column(cell.about), cell.facts["attack_source"]
        labels = [
            one.about.label
            for one in latest.values()
            if _column(one.about) == column and one.facts["attack_source"] != code
        ]
        if labels:
            yield (
                f"the code of {cell.about.attack} has changed since it attacked "
                f"{', '.join(dict.fromkeys(labels))}: tables show the numbers of both versions in "
                "one column, so attack again, or give the new version a name of its own"
            )


def _number(about: About) -> tuple[str | int, ...]:
    """What tables tell a number by, but for the digest of the weights."""
    return tuple(getattr(about, key) for key in (*ORDER, "label", "precision"))


def _column(about: About) -> tuple[str, ...]:
    """What the numbers of a column share."""
    return about.dataset, about.suite, about.queries, about.attack


def _other_training_code(trainings: Sequence[Training], store: Store) -> Iterable[str]:
    """A defense or a network whose code was another one when other seeds were trained."""
    outside = [one for one in trainings if _code(one.facts)]
    if not outside:
        return
    manifests = sorted(store.manifests(), key=lambda one: one.started)
    for training in outside:
        same = [one for one in manifests if _but_code(one.training) == _but_code(training.facts)]
        latest = {one.training["seed"]: _code(one.training) for one in same}
        mine = {one.seed for one in trainings if _but_code(one.facts) == _but_code(training.facts)}
        other = [seed for seed in latest.keys() - mine if latest[seed] != _code(training.facts)]
        if other:
            yield (
                f"the code of {training.shown} has changed since it was trained with "
                f"{seeds_in_words(sorted(other))}: tables show one mean over both versions, so "
                "train with these again, or give the new version a name of its own"
            )


def _code(training: Mapping[str, Any]) -> tuple[str, ...]:
    """The digests of code from outside dmlbench in the facts of a training."""
    network = training.get("model", {})
    found = (training.get("defense_source"), network.get("source"))
    return tuple(digest for digest in found if digest)


def _but_code(training: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a training without its seed and the digests of its code."""
    rest = {k: v for k, v in training.items() if k not in ("seed", "defense_source")}
    network = training.get("model", {})
    return rest | {"model": {k: v for k, v in network.items() if k != "source"}}
