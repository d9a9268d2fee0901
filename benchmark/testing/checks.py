"""The functions that check a component. Each returns findings or raises ``ConformanceError``."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from dmlbench.attacks.base import Attack
from dmlbench.core.registry import Component
from dmlbench.datasets.base import Dataset
from dmlbench.defenses.base import Defense
from dmlbench.models.base import Model
from dmlbench.testing import attacks, datasets, defenses, models
from dmlbench.testing.attack_subject import Subject
from dmlbench.testing.findings import Finding, findings, settled

C = TypeVar("C", bound=Component)


def check_attack(attack: Attack | type[Attack]) -> list[Finding]:
    """Check an attack: its class, or one with parameters of its own (``Towards(steps=8)``)."""
    one = _made(attack)
    return settled(one.card.name, findings(attacks.CHECKS, Subject(one), attacks.NEEDS))


def check_defense(defense: Defense | type[Defense]) -> list[Finding]:
    """Check a defense: its class, or one with parameters of its own."""
    one = _made(defense)
    return settled(one.card.name, findings(defenses.CHECKS, defenses.Subject(one), defenses.NEEDS))


def check_dataset(
    dataset: Dataset | type[Dataset], data_root: Path | None = None, cache: Path | None = None
) -> list[Finding]:
    """Check a data set: its class, or one with parameters of its own.

    Nothing is downloaded: where ``locate`` finds no files, only the card is checked.

    Args:
        dataset: what to check.
        data_root: folder of data sets; None: ``~/.cache/dmlbench``.
        cache: folder for decoded images; None: the default one.
    """
    one = _made(dataset)
    subject = datasets.Subject(one, data_root, cache)
    return settled(one.card.name, findings(datasets.CHECKS, subject, datasets.NEEDS))


def check_model(model: Model | type[Model]) -> list[Finding]:
    """Check a network: a class, one with parameters of its own, or a parsed ``module:factory``."""
    one = _made(model)
    return settled(one.card.name, findings(models.CHECKS, models.Subject(one), models.NEEDS))


def check(component: Component | type[Component]) -> list[Finding]:
    """Check an attack, a defense, a data set or a network.

    Raises:
        ConformanceError: a check failed; the message and ``findings`` say which and why.
        TypeError: it is none of these.
    """
    one = _made(component)
    if isinstance(one, Attack):
        return check_attack(one)
    if isinstance(one, Defense):
        return check_defense(one)
    if isinstance(one, Dataset):
        return check_dataset(one)
    if isinstance(one, Model):
        return check_model(one)
    raise TypeError(f"{component!r} is no attack, defense, data set or network")


def _made(component: C | type[C]) -> C:
    return component() if isinstance(component, type) else component
