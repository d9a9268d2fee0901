"""The parameters of a component: the fields that a spec may set, their types and their bounds."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import re
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from dmlbench.common.numbers import LARGEST
from dmlbench.common.suggest import did_you_mean

if TYPE_CHECKING:
    from dmlbench.core.registry import Component, Registry

LEVELS = 255  # of a pixel, which has 8 bits
AUTO = "auto"  # written in a spec for None: the card of the data set decides
OTHER_AUTO = "default"  # the same where ``auto`` is a value: a suite has that name


def parameter(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    choices: tuple[str | int, ...] = (),
    pixels: bool = False,
    unless: str = "",
    late: bool = False,
    required: bool = False,
    spec_of: Registry[Any] | None = None,
) -> Any:
    """A dataclass field that users may set in a spec.

    Args:
        default: the value if the user sets none. ``None`` (written ``auto`` in a spec) is allowed
            for a field of the type ``X | None``.
        help: its meaning in a few words, shown by ``dmlbench list``.
        above, at_least, at_most: bounds on a number.
        choices: the values that are allowed; a field of the type ``Literal`` has its own.
        pixels: True for a length in [0, 1] pixel space; it is printed as n/255 where that is exact.
        unless: ``key=value`` of another field; where it has that value, ``at_most`` does not hold
            and the number is no part of 255.
        late: True if results were stored before the parameter existed: ``values`` leaves it out
            at its default, so that their identities stay.
        required: True if a spec must name it; ``all`` leaves such a component out.
        spec_of: the registry whose spec the value is; None: the value is no spec.
    """
    bounds = {"above": above, "at_least": at_least, "at_most": at_most}
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "bounds": bounds,
            "choices": choices,
            "pixels": pixels,
            "unless": unless,
            "late": late,
            "required": required,
            "spec_of": spec_of,
        },
    )


@dataclass(frozen=True)
class Parameter:
    """The type, the bounds and the help text of one field that users may set.

    A field whose key is a word of Python's (``from``) has that name with an underscore behind it.
    """

    name: str
    type: type
    optional: bool
    default: Any
    help: str
    bounds: Mapping[str, float | None]
    choices: tuple[str | int, ...]
    pixels: bool
    unless: str = ""
    late: bool = False
    required: bool = False
    spec_of: Registry[Any] | None = None

    @property
    def key(self) -> str:
        """The name in a spec."""
        return self.name.rstrip("_")

    @property
    def none(self) -> str:
        """The spelling of None in a spec."""
        return OTHER_AUTO if AUTO in self.choices else AUTO

    def beside(self, given: Mapping[str, Any]) -> Parameter:
        """The parameter where the fields have the values ``given``: see ``unless``."""
        key, _, value = self.unless.partition("=")
        if not key or str(given.get(key)) != value:
            return self
        return dataclasses.replace(self, bounds={**self.bounds, "at_most": None}, pixels=False)

    @property
    def domain(self) -> str:
        """The values that are allowed, e.g. ``int >= 1`` or ``random | semihard``."""
        if self.choices:
            return " | ".join(map(str, self.choices))
        signs = {"above": ">", "at_least": ">=", "at_most": "<="}
        bounds = [
            f"{signs[kind]} {_number(bound, self.pixels)}"
            for kind, bound in self.bounds.items()
            if bound is not None
        ]
        return " ".join([self.type.__name__, " and ".join(bounds)]).strip()

    def show(self, value: Any) -> str:
        """Write ``value`` as in a spec."""
        if value is None:
            return self.none
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, float):
            return _number(value, self.pixels)
        text = str(value)
        return quoted(text) if text in (self.none, "") else spelt(text)

    def read(self, text: str) -> Any:
        """Convert ``text`` to a value; ValueError, with the reason, if it is not an allowed one."""
        if text == self.none and self.optional:
            return None
        value = self._convert(unquoted(text))
        self.check(value)
        return value

    def check(self, value: Any) -> None:
        """Raise ValueError if ``value`` is not allowed."""
        if value is None and self.optional:
            return
        if self.choices and value not in self.choices:
            known = [str(choice) for choice in self.choices]
            hint = did_you_mean(str(value), known)
            one_of = "one of " if len(known) > 1 else ""
            raise ValueError(f"{hint}must be {one_of}{', '.join(known)}, got {value!r}")
        kind = {int: numbers.Integral, float: numbers.Real, str: str}.get(self.type)
        flag = type(value).__name__ in ("bool", "bool_")  # the latter is NumPy's
        wrong = kind is not None and (flag or not isinstance(value, kind))
        if not self.choices and (wrong or (self.type is bool and not flag)):
            raise ValueError(f"must be {self.domain}, got {value!r}")
        above, at_least, at_most = (self.bounds[k] for k in ("above", "at_least", "at_most"))
        bad = (
            (above is not None and not value > above)
            or (at_least is not None and not value >= at_least)
            or (at_most is not None and not value <= at_most)
        )
        if bad:
            hint = f": {self.show(value)}/255?" if self.pixels and 1 < value <= LEVELS else ""
            raise ValueError(f"must be {self.domain}, got {self.show(value)}{hint}")

    def _convert(self, text: str) -> Any:
        if self.type is bool:
            words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
            if text.lower() not in words:
                raise ValueError(f"must be true or false, got {text!r}")
            return words[text.lower()]
        if self.type is str:
            return text
        try:
            value: float = int(text) if self.type is int else _real(text)
        except (ValueError, ZeroDivisionError, OverflowError):
            kind = "a whole number" if self.type is int else "a number or fraction"
            raise ValueError(f"must be {kind}, got {_short(text)}") from None
        if self.type is int and abs(value) > LARGEST:
            raise ValueError(f"must be smaller than 2^63, got {_short(text)}")
        if not math.isfinite(value):
            raise ValueError(f"must be finite, got {_short(text)}")
        return value


_FACTS = ("help", "bounds", "pixels", "unless", "late", "required", "spec_of")  # of a parameter


def parameters(cls: type[Component]) -> list[Parameter]:
    """The parameters of a component class, in the order of its fields."""
    hints = _type_hints(typing.cast(Any, cls))
    found = []
    for field in dataclasses.fields(typing.cast(Any, cls)):
        if "help" not in field.metadata:
            continue
        hint, choices = hints[field.name], field.metadata["choices"]
        optional = False
        if get_origin(hint) in (UnionType, typing.Union):
            optional = NoneType in get_args(hint)
            (hint,) = (arg for arg in get_args(hint) if arg is not NoneType)
        if get_origin(hint) is Literal:
            choices = get_args(hint)
            hint = type(choices[0])
        meta = {key: field.metadata[key] for key in _FACTS}
        found.append(Parameter(field.name, hint, optional, field.default, choices=choices, **meta))
    return found


_type_hints = functools.cache(typing.get_type_hints)  # long plans call it very often


def _real(text: str) -> float:
    numerator, slash, denominator = text.partition("/")
    return int(numerator) / int(denominator) if slash else float(text)


def _short(text: str) -> str:
    """A text in quotes, of a long one its beginning."""
    return repr(text) if len(text) <= 40 else f"{text[:40]!r}... ({len(text):,} characters)"


def _number(value: float, pixels: bool) -> str:
    if pixels and 0 < value < 1 and round(value * 255) / 255 == value:
        return f"{round(value * 255)}/255"
    return repr(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(value)


def expanded(path: str) -> str:
    """``path`` with the home folder in place of ``~``, as a shell does not do inside a spec.

    ``./~`` is the same: tables leave out the dot. Components call it for each path they are given.
    """
    plain = Path(path)
    if str(plain).startswith("~"):
        with suppress(RuntimeError):  # no user is called so: it is the name of a file
            return str(plain.expanduser())
    return path


def spelt(text: str) -> str:
    """``text`` as the value of a key: in double quotes where it needs them."""
    return quoted(text) if re.search(r'[",\s]', text) else text


def quoted(text: str) -> str:
    """``text`` in double quotes, as the value of a key; ``unquoted`` reads it back."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def unquoted(text: str) -> str:
    """The value that ``text`` in a spec stands for: itself, or what its double quotes hold."""
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text
