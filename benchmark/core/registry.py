"""One generic registry for attacks, defenses, data sets and models.

A registered class is a frozen dataclass with a ``card``. Its fields are the parameters that a user
may set (``dmlbench.core.spec``); an instance is one configuration.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, SupportsIndex, TypeVar

from dmlbench.common.errors import UserError
from dmlbench.common.suggest import unknown
from dmlbench.common.text import message_of, reason_of
from dmlbench.core.papers import Paper
from dmlbench.core.reference import Reference, is_own, origin, remember
from dmlbench.core.sources import is_typed, source_file


@dataclass(frozen=True)
class Card:
    """The short description of a method, for listings and boards.

    Attributes:
        name: the name on the command line, lower case.
        summary: its meaning in one line.
        paper: the publication that defines it, if any.
        version: raised whenever the definition changes; part of every cell's identity.
    """

    name: str
    summary: str
    paper: Paper | None = None
    version: int = 1


class Component:
    """Base class of attacks, defenses, data sets and models; subclasses are frozen dataclasses."""

    card: ClassVar[Card]
    absent: ClassVar[Mapping[str, str]] = {}
    """Keys that a user might expect but that do not exist -> the reason, for the error message."""

    @classmethod
    def conflict(cls, others: Iterable[type[Component]]) -> str | None:
        """The reason for which the class cannot be used beside ``others``; None if it can."""
        return None

    def in_tables(self) -> Self:
        """The component that tables name: no row says where a file lies."""
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """For other processes, which load the class of a reference by that reference."""
        known, plain = origin(type(self)), super().__reduce_ex__(protocol)
        return plain if known is None else (known.restore, (), plain[2])


C = TypeVar("C", bound=Component)


class Registry(Generic[C]):
    """All classes of one kind by their name, from a built-in package and from entry points.

    Args:
        kind: singular noun used in messages, e.g. ``"attack"``.
        group: name of the built-in package, whose modules register their classes when they are
            imported, and also of the entry-point group for other packages, e.g.
            ``"dmlbench.attacks"``.
        required: attributes that a class must have besides its card, e.g. ``("columns",)``.
        hint: what to do with a name that is not registered; empty for most.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        required: tuple[str, ...] = (),
        hint: Callable[[str], str] = lambda name: "",
    ) -> None:
        self.kind = kind
        self._hint = hint
        self.group = group
        self._required = required
        self._classes: dict[str, type[C]] = {}
        self._named: frozenset[str] = frozenset()  # built in or of an installed plugin
        self._loaded = False

    def register(self, cls: type[C]) -> type[C]:
        """Add a class under the name on its card; used as a decorator.

        Raises:
            ValueError: another class has the same name. The message names both source files.
        """
        name = cls.card.name
        known = self._classes.get(name)
        if known is not None and known is not cls and not _newer(cls, known):
            raise ValueError(
                f"{self.kind} {name!r} is registered twice: in {_place(known)} and in {_place(cls)}"
            )
        self._classes[name] = cls
        return cls

    def find(self, reference: Reference) -> type[C]:
        """The class at ``reference``: one that is registered, or any other that is fit to be.

        Raises:
            UserError: it cannot be loaded, is no component of this kind, or has the name or a
                column of another.
        """
        self._load()
        try:
            cls: Any = reference.load()
        except UserError as error:
            missing = f"No module named {reference.place!r}" in str(error)
            mistyped = missing and "." not in reference.place  # rather a name than a module
            said = f"{self._unknown(reference.place)}; and " if mistyped else f"{self.kind} "
            raise UserError(f"{said}{error}") from None
        known = next((c for n, c in self._classes.items() if n in self._named and c is cls), None)
        if known is not None:
            return known
        try:
            self.admit(cls)
            cls()  # nothing abstract is left, and every field has a default
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # among them what its own code raises
            said = message_of(error)
            raise UserError(f"{self.kind} {reference}: {said}") from None
        remember(cls, reference)
        found: type[C] = cls
        return found

    def admit(self, cls: type[C]) -> None:
        """Register a class that the user gave by its place or by an instance, unless it is already.

        Raises:
            TypeError: it lacks what a component needs.
            ValueError: it has the name or a column of another.
        """
        self._load()
        if cls in self._classes.values():
            return
        self._validate(cls)
        name = cls.card.name
        if not re.fullmatch(r"[a-z0-9][\w.+-]*", name) or name != name.lower():
            raise ValueError(
                f"its card is named {name!r}: a name is of lower-case letters, digits and +-._"
            )
        if conflict := cls.conflict(self._classes.values()):
            raise ValueError(conflict)
        self.register(cls)

    def get(self, name: str) -> type[C]:
        """The class registered as ``name``; UserError with suggestions if there is none."""
        self._load()
        try:
            return self._classes[name]
        except KeyError:
            raise UserError(self._unknown(name)) from None

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._load()
        return sorted(self._classes)

    def __iter__(self) -> Iterator[type[C]]:
        return iter([self.get(name) for name in self.names()])

    def _validate(self, cls: Any) -> None:
        """Raise TypeError unless ``cls`` has all that ``dmlbench list`` and ``parse`` need."""
        derived = isinstance(cls, type) and issubclass(cls, Component)
        if not derived or not hasattr(cls, "__dataclass_fields__"):
            raise TypeError(
                f"it must be a dataclass that derives from the base of every {self.kind}"
            )
        card: object = getattr(cls, "card", None)
        if not isinstance(card, Card):
            raise TypeError("it has no card")
        _check_card(card)
        missing = [name for name in self._required if not hasattr(cls, name)]
        if missing:
            raise TypeError(f"it is no {self.kind}: it lacks {', '.join(missing)}")
        typing.get_type_hints(cls)
        if conflict := cls.conflict(c for c in self._classes.values() if is_own(c)):
            raise TypeError(conflict)

    def _unknown(self, name: str) -> str:
        if name.lower() in self._classes:
            return f"unknown {self.kind} {name!r}: names are lower case: {name.lower()!r}"
        if name.endswith(".py"):
            return f"{self.kind} {name!r}: name the class in that file too, {name}:ClassName"
        if hint := self._hint(name):
            return f"unknown {self.kind} {name!r}: {hint}"
        return unknown(self.kind, name, self.names())

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self.group)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.group}.{module.name}")
        for entry in importlib.metadata.entry_points(group=self.group):
            try:
                cls = entry.load()
                self._validate(cls)
                self.register(cls)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a broken plugin must not take the command line down
                warnings.warn(
                    f"plugin {self.kind} {entry.name!r} ({entry.value}) is left out: "
                    f"{reason_of(error)}",
                    stacklevel=2,
                )
        self._named = frozenset(self._classes)


def _check_card(card: Card) -> None:
    """Raise TypeError unless the fields of a card have their types."""
    for name, text in (("name", card.name), ("summary", card.summary)):
        if not isinstance(text, str):
            raise TypeError(f"the {name} on its card must be a text, got {text!r}")
    if not isinstance(card.paper, Paper | None):
        raise TypeError(f"the paper on its card must be a Paper or None, got {card.paper!r}")
    if isinstance(card.version, bool) or not isinstance(card.version, int) or card.version < 1:
        raise TypeError(f"the version on its card must be 1, 2, 3, ..., got {card.version!r}")


def _newer(cls: type[Component], known: type[Component]) -> bool:
    """True if both are one class of one file, or one notebook, that was changed and read again."""
    places = [(source_file(one) or is_typed(one), one.__qualname__) for one in (known, cls)]
    return bool(places[0][0]) and places[0] == places[1]


def _place(cls: type[Component]) -> str:
    try:
        return f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):
        return f"{cls.__module__}.{cls.__qualname__}"
