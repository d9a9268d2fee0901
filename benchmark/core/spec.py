"""The spec grammar: translates ``name:key=value,key=value`` to a component and back.

    ca+                          CA+ with its defaults
    ca+:w=5,eps=8/255            five queries, radius 8/255
    hm:source=random,ics=0       HM from random triplets, without ICS
    pkg.attacks:Towards:steps=8  a class that is not registered, by its module
    my/attacks.py:Towards        the same by its file
    pkg.module:factory:width=32  (models only) any callable that builds a network

The type of a value is that of the component's field. A number may be written as a fraction. A
value that contains a comma is written in double quotes. ``canonical`` is the inverse of ``parse``:
it names only the values that differ from the defaults, in the order of the fields, so equal
configurations have equal spellings.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from dmlbench.common.errors import UserError
from dmlbench.common.suggest import unknown
from dmlbench.core import reference
from dmlbench.core.parameters import (
    Parameter,
    expanded,
    parameter,
    parameters,
    quoted,
    unquoted,
)
from dmlbench.core.registry import Component, Registry

__all__ = [
    "Parameter",
    "build",
    "canonical",
    "check",
    "expanded",
    "parameter",
    "parameters",
    "parse",
    "quoted",
    "read_reference",
    "refuse_reference",
    "shortest",
    "shown",
    "split_pairs",
    "unquoted",
    "values",
]

C = TypeVar("C", bound=Component)
Value = bool | int | float | str | None


def parse(text: str, registry: Registry[C]) -> C:
    """Build the component that the spec ``text`` describes.

    Raises:
        UserError: an unknown name (with suggestions), a class that cannot be loaded or is unfit,
            an unknown key (with the valid ones), a key given twice, or a value outside its domain.
    """
    pointed = read_reference(text, registry)
    if pointed is None:
        name, _, rest = text.strip().partition(":")
        if "=" in name:
            raise UserError(
                f"{registry.kind} {text!r} has a key and no name: write NAME:KEY=VALUE,KEY=VALUE "
                "(in quotes where it has a comma and stands in a list of a YAML file)"
            )
        cls = registry.get(name)
    else:
        place, rest = pointed
        name, cls = str(place), registry.find(place)
    pairs = split_pairs(rest, f"{registry.kind} {text!r}")
    return build(cls, pairs, f"{registry.kind} {name}")


def read_reference(text: str, registry: Registry[C]) -> tuple[reference.Reference, str] | None:
    """The reference that ``text`` begins with, and its pairs; None if it begins with a name."""
    name = text.strip().partition(":")[0]
    pointed = None if name in registry.names() else reference.read(text)
    return pointed and (pointed[0], pointed[1] or "")


def refuse_reference(text: str, registry: Registry[C], source: str) -> None:
    """UserError if ``text``, a spec from ``source``, or a spec in its values names code to run.

    A text that is no spec passes: ``parse`` refuses it, and runs nothing.
    """
    pointed = read_reference(text, registry)
    if pointed is not None:
        raise UserError(
            f"{source} names {registry.kind} {pointed[0]}, which is code that would be run: look "
            "at it, and allow it with --allow-code (in Python allow_code=True)"
        )
    try:
        name, _, rest = text.strip().partition(":")
        pairs, known = split_pairs(rest, name), parameters(registry.get(name))
    except UserError:
        return
    for p in known:
        if p.spec_of is not None and p.key in pairs:
            refuse_reference(unquoted(pairs[p.key]), p.spec_of, source)


def build(cls: type[C], pairs: Mapping[str, str], subject: str, **fixed: object) -> C:
    """Build a ``cls`` from values that are still text.

    Args:
        cls: a component class.
        pairs: parameter -> its value as text.
        subject: the beginning of every error message, e.g. ``"attack ca+"``.
        fixed: values of fields that users may not set, as they are.

    Raises:
        UserError: an unknown key, or a value that is not allowed.
    """
    known = {p.key: p for p in parameters(cls)}
    values = dict(fixed)
    given = {p.key: p.default for p in known.values()}
    given |= {key: unquoted(text) for key, text in pairs.items()}
    for p in known.values():
        if p.required and p.key not in pairs:
            raise UserError(f"{subject}: name {p.key}=..., {p.help}")
    for key, spelt in pairs.items():
        if key not in known:
            reason = cls.absent.get(key)
            raise UserError(f"{subject}: {reason or unknown('key', key, known)}")
        try:
            values[known[key].name] = known[key].beside(given).read(spelt)
        except ValueError as error:
            raise UserError(f"{subject}: {key} {error}") from None
    try:
        return cls(**values)
    except ValueError as error:  # a rule between fields, from __post_init__
        raise UserError(f"{subject}: {error}") from None
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever the code of a plugin raises
        if reference.is_own(cls):
            raise
        raise UserError(f"{subject}: {reference.reason(error)}") from None


def split_pairs(text: str, subject: str) -> dict[str, str]:
    """Split ``"a=1,b=x"`` into ``{"a": "1", "b": "x"}``.

    Raises:
        UserError: the text has another form. The message begins with ``subject``.
    """
    pairs: dict[str, str] = {}
    item = re.compile(r'\s*([A-Za-z_][\w-]*)\s*=\s*("(?:[^"\\]|\\.)*"|[^,"]*?)\s*(?:,|$)')
    position = 0
    while position < len(text):
        match = item.match(text, position)
        if match is None or not match[2]:
            quotes = '; a value with a comma is in quotes: key="a,b"' if pairs else ""
            raise UserError(
                f"{subject}: expected key=value,key=value, got {text[position:]!r}{quotes}"
            )
        key = match[1].replace("-", "_")
        if key in pairs:
            raise UserError(f"{subject}: {key} is given twice")
        pairs[key] = match[2]
        position = match.end()
    return pairs


def canonical(component: Component) -> str:
    """Write ``component`` as the shortest spec that ``parse`` reads back to it."""
    known = reference.origin(type(component))
    return _spelt(component, str(known.reference) if known else component.card.name)


def shown(component: Component) -> str:
    """``canonical`` with the name of the card, for tables: no row says where a file lies."""
    return _spelt(component.in_tables(), component.card.name)


def _spelt(component: Component, name: str) -> str:
    fields = _fields(component)
    pairs = [
        f"{p.key}={p.beside(fields).show(value)}"
        for p in parameters(type(component))
        if (value := getattr(component, p.name)) != p.default
    ]
    return f"{name}:{','.join(pairs)}" if pairs else name


def shortest(component: C, resolve: Callable[[C], C]) -> str:
    """Write the shortest spec that becomes ``component`` once ``resolve`` has completed it.

    It is for tables (``shown``).

    Example: ``hm`` for an HM whose eta, eps and alpha are those that ``resolve`` takes from the
    card of the data set.
    """
    bare = component
    for p in parameters(type(component)):
        try:
            candidate = dataclasses.replace(typing.cast(Any, bare), **{p.name: p.default})
            same = resolve(candidate) == component
        except (ValueError, UserError):  # a rule between fields: this one is needed
            continue
        if same:
            bare = candidate
    return shown(bare)


def values(component: Component) -> dict[str, Value]:
    """Parameter -> value (JSON types) of a component; late parameters only off their default."""
    pairs = ((p, getattr(component, p.name)) for p in parameters(type(component)))
    return {p.key: value for p, value in pairs if not (p.late and value == p.default)}


def plain(component: C) -> C:
    """The component with Python's own numbers in place of NumPy's, as a spec would give it."""
    found = {p.name: getattr(component, p.name) for p in parameters(type(component))}
    numpy = {k: v.item() for k, v in found.items() if type(v).__module__ == "numpy"}
    return dataclasses.replace(typing.cast(Any, component), **numpy) if numpy else component


def check(component: Component) -> None:
    """Raise ValueError if a parameter of ``component`` has a value that is not allowed.

    For one that a caller has built in Python: it has not gone through ``parse``.
    """
    fields = _fields(component)
    for p in parameters(type(component)):
        try:
            p.beside(fields).check(getattr(component, p.name))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{component.card.name}: {p.key} {error}") from None


def check_hidden(component: Component) -> None:
    """Raise ValueError if a field that is no parameter has a value that no spec can give it.

    Its numbers would be stored as those of the component that has the same parameters.
    """
    cls = type(component)
    names = [one.name for one in hidden(cls) if one.default_factory is dataclasses.MISSING]
    if not names:
        return
    try:
        usual = cls(**{p.name: getattr(component, p.name) for p in parameters(cls)})
    except TypeError:
        raise ValueError(f"{component.card.name}: each field needs a default") from None
    for name in names:
        given, known = getattr(component, name), getattr(usual, name)
        try:
            same = given is known or bool(given == known)
        except Exception:  # whatever an object of the user's own raises
            same = False
        if not same:
            raise ValueError(
                f"{component.card.name}: {name} cannot be set: write it as a parameter "
                f"({name} = parameter(...)), so that its value is part of what is stored, or as "
                "field(init=False)"
            )


def hidden(cls: type[Component]) -> list[dataclasses.Field[Any]]:
    """The fields of a class that can be set in Python and in no spec."""
    fields = dataclasses.fields(typing.cast(Any, cls))
    return [f for f in fields if f.init and f.compare and "help" not in f.metadata]


def _fields(component: Component) -> dict[str, Any]:
    """Key -> value of all parameters."""
    return {p.key: getattr(component, p.name) for p in parameters(type(component))}
