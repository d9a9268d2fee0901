"""Specs as users write them, turned into what a run needs. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from dmlbench.attacks.base import ATTACKS, Attack
from dmlbench.common.errors import UserError
from dmlbench.core import spec
from dmlbench.core.protocol import SUITE_ATTACKS, SUITES, Recipe
from dmlbench.core.registry import Component, Registry
from dmlbench.datasets.base import Dataset

C = TypeVar("C", bound=Component)


def parse_all(specs: Sequence[str | C], registry: Registry[C]) -> list[C]:
    """The components of ``specs``; ``all`` stands for every name that needs no key.

    Raises:
        UserError: a spec that cannot be read, a component with a value out of its range, or one
            whose class has the name or a column of another.
    """
    names = [one for text in specs for one in (_all(registry) if text == "all" else [text])]
    for one in names:
        if not isinstance(one, str):
            try:
                registry.admit(type(one))
            except (TypeError, ValueError) as error:
                raise UserError(f"{registry.kind} {type(one).__name__}: {error}") from None
    found = [spec.parse(one, registry) if isinstance(one, str) else one for one in names]
    with refused_values():
        for component in found:
            spec.check(component)
            spec.check_hidden(component)
    return [spec.plain(component) for component in found]


@contextmanager
def refused_values() -> Iterator[None]:
    """Raise the ValueError of ``spec.check`` within a ``with`` block as a UserError."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from None


def _all(registry: Registry[C]) -> list[str]:
    """The names that need no key."""
    return [c.card.name for c in registry if not any(p.required for p in spec.parameters(c))]


def parse_attacks(specs: Sequence[str | Attack], suites: Sequence[str]) -> list[Attack]:
    """The attacks asked for, once for each suite that is named; an attack's own suite wins.

    Without ``specs`` they are those of the suite: the nine of ERS, and what else it has.

    Raises:
        UserError: neither attacks nor suites are named, a spec cannot be read, or a suite is named
            that no attack reads.
    """
    if not specs and not suites:
        raise UserError("name an attack (--attack ca+), or the attacks of ERS (--suite strict)")
    for suite in suites:
        if suite not in SUITES:
            raise UserError(f"suite must be one of {', '.join(SUITES)}, got {suite!r}")
    if not specs:
        return [
            one.in_suite(suite)
            for suite in suites
            for one in parse_all(SUITE_ATTACKS[suite], ATTACKS)
        ]
    named = parse_all(specs, ATTACKS)
    own = {one.suite for one in named}
    for suite in suites if None not in own else ():
        if suite not in own:
            raise UserError(
                f"suite {suite} is read by no attack, as each names a suite of its own: "
                f"{', '.join(sorted({spec.shown(one) for one in named}))}"
            )
    return [one.in_suite(suite) for suite in suites for one in named] if suites else named


def parse_recipe(dataset: Dataset, changes: str | Mapping[str, Any]) -> Recipe:
    """The data set's training recipe, with the user's changes in it.

    Args:
        dataset: whose card has the recipe.
        changes: ``"epochs=2,lr=0.01"`` or ``{"epochs": 2, "lr": 0.01}``.

    Raises:
        UserError: an unknown key, or a value out of its range.
    """
    usual = dataset.protocol.recipe
    pairs = {p.name: p.show(getattr(usual, p.name)) for p in spec.parameters(Recipe)}
    if isinstance(changes, str):
        pairs |= spec.split_pairs(changes, f"recipe {changes!r}")
    elif isinstance(changes, Mapping):
        pairs |= {str(key): str(value) for key, value in changes.items()}
    else:
        raise UserError(f"recipe must be 'epochs=2' or {{'epochs': 2}}, got {changes!r}")
    return spec.build(Recipe, pairs, "recipe")


def whole_number(text: str) -> int | None:
    """The number of queries, or of draws, that a row tells of; None where it is empty.

    Raises:
        UserError: it is no whole number from 1 up.
    """
    if text and not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise UserError(f"a row has {text[:40]!r} for a number of queries or draws")
    return int(text) if text else None
