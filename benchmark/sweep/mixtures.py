"""Warnings of what tables would put in one column, or in one mean, although it differs.

The usual radius of a data set is not in the name of a column, and nor is the code of a network, a
defense or an attack from a file: two versions of a file have the same name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dmlbench.analysis.records import MODEL
from dmlbench.core.naming import parameters, seeds_in_words
from dmlbench.models.module import ModuleModel
from dmlbench.storage.cell import ORDER, About, PlannedCell
from dmlbench.storage.store import Store
from dmlbench.sweep.status import PlannedModel, StoredCells

ATTACK, DEFENSE = "attack_source", "defense_source"  # facts: digests of code outside dmlbench


def warn_of_mixtures(models: Sequence[PlannedModel], known: StoredCells, store: Store) -> None:
    """Warn of stored numbers that differ from those of this run in what no table says.

    Args:
        models: the models of the run with their cells.
        known: the stored cells.
        store: the results folder.
    """
    found = [
        *_other_radius(models, known),
        *_other_attack(models, known),
        *_other_network(models, known),
        *_other_defense(models, store),
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


def _other_attack(models: Sequence[PlannedModel], known: StoredCells) -> Iterable[str]:
    """An attack whose code was another one when models outside this run were attacked."""
    planned = [task.cell for model in models for task, _ in model.cells]
    for about, others in _of_other_code(planned, known, _number, _column, _attack_code):
        yield (
            f"the code of {about.attack} has changed since it attacked {others}: tables show the "
            "numbers of both versions in one column, so attack again, or give the new version a "
            "name of its own"
        )


def _of_other_code(
    planned: Sequence[PlannedCell],
    known: StoredCells,
    number: Callable[[About], tuple[str | int, ...]],
    column: Callable[[About], tuple[str, ...]],
    code: Callable[[PlannedCell], str],
) -> Iterable[tuple[About, str]]:
    """Each planned cell that shares its column with numbers of other code, and whose these are.

    Args:
        planned: cells of this run.
        known: the stored cells.
        number: the fields that tables tell a number by; the latest one of each counts.
        column: the fields that the numbers of a column share.
        code: the digest of the code from outside dmlbench in a cell; empty if there is none.
    """
    of_run = {number(cell.about) for cell in planned}
    measured = [cell for cell in known.cells.values() if cell.ok and code(cell)]
    latest = {number(cell.about): cell for cell in sorted(measured, key=lambda one: one.started)}
    outside = [cell for key, cell in latest.items() if key not in of_run]
    for cell in planned:
        others = dict.fromkeys(
            f"{one.about.label} (seed {one.about.seed})"
            for one in outside
            if code(cell) not in ("", code(one)) and column(one.about) == column(cell.about)
        )
        if others:
            yield cell.about, ", ".join(others)


def _number(about: About) -> tuple[str | int, ...]:
    """The fields that tables tell a number by, but for the digest of the weights."""
    return tuple(getattr(about, key) for key in (*ORDER, "label", "precision"))


def _column(about: About) -> tuple[str, ...]:
    """The fields that the numbers of a column share."""
    return about.dataset, about.suite, about.queries, about.attack


def _attack_code(cell: PlannedCell) -> str:
    """The digest of the code of an attack from outside dmlbench; empty for any other."""
    return cell.facts.get(ATTACK) or ""


def _other_network(models: Sequence[PlannedModel], known: StoredCells) -> Iterable[str]:
    """A network in a file whose code was another one when models outside this run were measured.

    A network in memory has the name of its class, which others may have.
    """
    tasks = [task for model in models for task, _ in model.cells]
    planned = [task.cell for task in tasks if not isinstance(task.weights.model, ModuleModel)]
    for about, others in _of_other_code(planned, known, _model, _network, _network_code):
        yield (
            f"the code of {about.model} has changed since {others} was measured: tables show both "
            "versions as one network, so measure again, or give the new version a name of its own"
        )


def _network(about: About) -> tuple[str, ...]:
    """The fields that the rows of a network share."""
    return about.dataset, about.model


def _model(about: About) -> tuple[str | int, ...]:
    """The fields that tables tell a model by, but for the digest of the weights."""
    return tuple(getattr(about, key) for key in MODEL)


def _network_code(cell: PlannedCell) -> str:
    """The digest of the code of a network from outside dmlbench; empty for any other."""
    found: str | None = cell.facts.get("model", {}).get("source")
    return found or ""


def _other_defense(models: Sequence[PlannedModel], store: Store) -> Iterable[str]:
    """A defense whose code was another one when other seeds were trained."""
    every = [model.train.training for model in models if model.train is not None]
    trainings = [one for one in every if one.facts.get(DEFENSE)]
    if not trainings:
        return
    manifests = sorted(store.manifests(), key=lambda one: one.started)
    for training in trainings:
        alike = _but_code(training.facts)
        same = [one.training for one in manifests if _but_code(one.training) == alike]
        latest = {one["seed"]: one.get(DEFENSE) for one in same}
        of_run = {one.seed for one in trainings if _but_code(one.facts) == alike}
        other = {seed for seed, code in latest.items() if code != training.facts[DEFENSE]} - of_run
        if other:
            yield (
                f"the code of {training.shown} has changed since it was trained with "
                f"{seeds_in_words(sorted(other))}: tables show one mean over both versions, so "
                "train with these again, or give the new version a name of its own"
            )


def _but_code(training: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a training without its seed and the digest of its defense."""
    return {key: value for key, value in training.items() if key not in ("seed", DEFENSE)}
