"""Warnings of what tables would put in one column, or in one mean, although it differs.

The usual radius of a data set is not in the name of a column, and nor is the code of a network, a
defense or an attack from a file: two versions of a file have the same name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmlbench.analysis.records import MODEL
from dmlbench.core.naming import parameters, seeds_in_words
from dmlbench.storage.cell import About, Cell, PlannedCell
from dmlbench.storage.store import Store
from dmlbench.sweep.policies import DONE
from dmlbench.sweep.status import PlannedModel, StoredCells
from dmlbench.training.job import Training

ATTACK, DEFENSE = "attack_source", "defense_source"  # facts: digests of code outside dmlbench
MOST_NAMES = 5  # of models in a warning


@dataclass(frozen=True)
class Plan:
    """The models that a run is about to measure, and the cells that are stored.

    Attributes:
        models: the models of the run with their cells.
        elsewhere: gives the models of its other shards, which are measured with today's code, too;
            it is called only where code has changed.
        known: the stored cells.
        resume: the policy of the run.
    """

    models: Sequence[PlannedModel]
    elsewhere: Callable[[], Sequence[PlannedModel]]
    known: StoredCells
    resume: str

    def cells(self) -> Iterator[tuple[PlannedCell, bool]]:
        """The cells whose numbers will be of today's code, and whether they are stored already."""
        for model in self.models:
            for task, status in model.cells:
                measured = model.measures(status, self.resume)
                if measured or status == DONE:
                    yield task.cell, not measured

    def trainings(self) -> Iterator[Training]:
        """The trainings whose weights will be of today's code."""
        for model in self.models:
            train = model.train
            if train and (model.trained == DONE or train in model.first_tasks(self.resume)):
                yield train.training


@dataclass(frozen=True)
class _Code:
    """A kind of code outside dmlbench that numbers depend on.

    Attributes:
        digest: its digest by a cell; empty if there is none.
        name: its name in tables.
        number: the fields that tables tell one number by; the one that was measured last counts.
        together: the fields that are equal in numbers which tables show as of one code.
    """

    digest: Callable[[PlannedCell], str]
    name: Callable[[About], str]
    number: tuple[str, ...]
    together: tuple[str, ...]


def _attack(cell: PlannedCell) -> str:
    return cell.facts.get(ATTACK) or ""


def _network(cell: PlannedCell) -> str:
    """For a network in memory, that of the function that made it."""
    facts = cell.facts.get("model", {})
    return facts.get("made_by" if "architecture" in facts else "source") or ""


_COLUMN = ("dataset", "suite", "queries", "attack")
CODES = (
    _Code(_attack, lambda about: about.attack.partition(":")[0], (*MODEL, *_COLUMN), _COLUMN),
    _Code(_network, lambda about: about.model, MODEL, ("dataset", "model")),
)


def warn_of_mixtures(plan: Plan, store: Store) -> None:
    """Warn of stored numbers that differ from those of this run in what no table says."""
    lines = [
        *_other_radius(plan),
        *(line for code in CODES for line in _other_code(plan, code)),
        *_other_defense(plan, store),
    ]
    for line in lines:
        warnings.warn(line, stacklevel=4)


def _other_radius(plan: Plan) -> Iterator[str]:
    """A data set of the same name that was attacked within another radius.

    Those of registered data sets never change, so this is for ``from_arrays`` and for classes of
    the user. One warning is enough.
    """
    stored = {_adversary(cell.about) for cell in plan.known.cells.values() if cell.ok}
    for task, _ in (one for model in plan.models for one in model.cells):
        attacked, eps = _adversary(task.cell.about)
        others = sorted({other for same, other in stored if same == attacked} - {eps, ""})
        if eps and others:
            dataset, _, attack = attacked
            yield (
                f"{attack} on {dataset} has eps {eps} here, and {', '.join(others)} in stored "
                "results: tables show both in one column, so give the data sets names of their own"
            )
            return


def _adversary(about: About) -> tuple[tuple[str, str, str], str]:
    """Data set, suite and attack, as tables name them; and the radius, empty for clean images."""
    radius = parameters(about.attack_resolved).get("eps", "")
    return (about.dataset, about.suite, about.attack), radius


def _other_code(plan: Plan, code: _Code) -> Iterator[str]:
    """Models whose numbers are of another version of an attack or a network than today's.

    - Models outside the run: tables show their numbers beside those of the run.
    - Models of the run: their number of today's version is stored, and was measured again with
      another version after that. Tables show the last one.
    """
    latest = _latest(plan.known, code)
    shown: dict[tuple[Any, ...], list[Cell]] = {}
    for one in latest.values():
        shown.setdefault(_fields(one.about, code.together), []).append(one)
    differing = [
        (cell, done, other)
        for cell, done in plan.cells()
        if code.digest(cell)
        for other in shown.get(_fields(cell.about, code.together), ())
        if code.digest(other) != code.digest(cell)
    ]
    if not differing:
        return
    cells = [cell for cell, _ in plan.cells()]
    cells += [task.cell for model in plan.elsewhere() for task, _ in model.cells]
    of_run = {_fields(cell.about, code.number) for cell in cells}
    before, after = _Models(), _Models()
    for cell, done, other in differing:
        number = _fields(other.about, code.number)
        if number not in of_run:
            before.add(code.name(cell.about), other.about.label, other.about.seed)
        elif done and number == _fields(cell.about, code.number):
            after.add(code.name(cell.about), other.about.label, other.about.seed)
    for name, models in before.named():
        yield (
            f"the code of {name} has changed since {models} was measured with it: tables show both "
            "versions under one name, so measure again, or give the new version a name of its own"
        )
    for name, models in after.named():
        yield (
            f"the numbers of {models} that tables show are of another version of {name}, which was "
            "measured later than this one: use another results folder, or give each version a name "
            "of its own"
        )


def _latest(known: StoredCells, code: _Code) -> dict[tuple[Any, ...], Cell]:
    """The cell that tables show of each number that depends on the code."""
    stored = [cell for cell in known.cells.values() if cell.ok and code.digest(cell)]
    stored.sort(key=lambda cell: cell.started)
    return {_fields(cell.about, code.number): cell for cell in stored}


def _fields(about: About, names: Iterable[str]) -> tuple[Any, ...]:
    return tuple(getattr(about, name) for name in names)


class _Models(dict[str, dict[str, set[int]]]):
    """Name of some code -> label of a model -> its seeds."""

    def add(self, name: str, label: str, seed: int) -> None:
        """Add a model."""
        self.setdefault(name, {}).setdefault(label, set()).add(seed)

    def named(self) -> Iterator[tuple[str, str]]:
        """Each name with its models in words, of which a line has five at most."""
        for name, models in self.items():
            words = [f"{one} ({seeds_in_words(sorted(seeds))})" for one, seeds in models.items()]
            more = f" and {len(words) - MOST_NAMES} more" if len(words) > MOST_NAMES else ""
            yield name, ", ".join(words[:MOST_NAMES]) + more


def _other_defense(plan: Plan, store: Store) -> Iterator[str]:
    """A defense whose code was another one when other seeds were trained."""
    trainings = [one for one in plan.trainings() if one.facts.get(DEFENSE)]
    if not trainings:
        return
    manifests = sorted(store.manifests(), key=lambda one: one.started)
    said = set()
    for training in trainings:
        alike = _but_code(training.facts)
        same = [one.training for one in manifests if _but_code(one.training) == alike]
        latest = {one["seed"]: one.get(DEFENSE) for one in same}
        other = {seed for seed, code in latest.items() if code != training.facts[DEFENSE]}
        if other:
            elsewhere = [model.train.training for model in plan.elsewhere() if model.train]
            of_run = (*trainings, *elsewhere)
            other -= {one.seed for one in of_run if _but_code(one.facts) == alike}
        if other and training.shown not in said:
            said.add(training.shown)
            yield (
                f"the code of {training.shown} has changed since it was trained with "
                f"{seeds_in_words(sorted(other))}: tables show one mean over both versions, so "
                "train with these again, or give the new version a name of its own"
            )


def _but_code(training: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a training without its seed and the digest of its defense."""
    return {key: value for key, value in training.items() if key not in ("seed", DEFENSE)}
