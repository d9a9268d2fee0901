"""Checks of the card and the parameters, which every kind of component has."""

from __future__ import annotations

import dataclasses
import json
import re

from dmlbench.core import spec
from dmlbench.core.reference import is_own
from dmlbench.core.registry import Card, Component
from dmlbench.testing.findings import require


def card(component: Component) -> None:
    """The card says what a reader of tables needs. A paper is not needed."""
    card = component.card
    require(
        isinstance(card, Card), "it has no card: write card = Card('name', 'what it is, in a line')"
    )
    require(
        re.fullmatch(r"[a-z0-9][a-z0-9_.+-]*", card.name),
        f"the card's name is {card.name!r}: it is typed on the command line and names files, so "
        "write it in lower-case letters, digits and +-._",
    )
    require(card.summary, f"the card of {card.name!r} has no summary: say in a line what it does")
    require(
        "\n" not in card.summary and not card.summary.endswith("."),
        f"the card's summary is {card.summary!r}: it stands in a list, so write it as one line "
        "without a full stop",
    )
    require(
        isinstance(card.version, int) and card.version >= 1,
        f"the card's version is {card.version!r}: it is a number from 1, raised when the "
        "definition changes, so that older numbers are told from newer ones",
    )
    if card.paper is not None:
        require(card.paper.key in card.paper.bibtex, "the card's paper has no key to cite it by")


def parameters(component: Component) -> None:
    """Every parameter has a meaning, a valid default, and a spelling that is read again."""
    cls = type(component)
    for klass in cls.__mro__:
        forgotten = [k for k, v in vars(klass).items() if isinstance(v, dataclasses.Field)]
        require(
            not forgotten,
            f"{klass.__name__} has the parameters {', '.join(forgotten)} but is no dataclass, so "
            "they cannot be set: write @dataclass(frozen=True, kw_only=True) above it",
        )
    require(
        vars(cls).get("__dataclass_params__", cls.__dataclass_params__).frozen,  # type: ignore[attr-defined]
        f"{cls.__name__} can be changed after it was made: its values are part of the identity of "
        "a number, so write @dataclass(frozen=True, kw_only=True) above it",
    )
    names = ", ".join(one.name for one in spec.hidden(cls))
    require(
        is_own(cls) or not names,
        f"{names} can be set in Python alone, and numbers of two values would be stored as one: "
        "write parameter(default, 'what it means') as its default, or field(init=False)",
    )
    hash(component)  # plans hold each configuration once
    for p in spec.parameters(cls):
        require(p.help, f"parameter {p.name} has no help: 'dmlbench list' shows it to users")
        p.check(p.default)
        value = getattr(component, p.name)
        p.check(value)
        require(
            p.read(p.show(value)) == value,
            f"parameter {p.name} is written as {p.show(value)!r}, which reads as another value",
        )
    json.dumps(spec.values(component))
