"""One generic registry for attacks, defenses, data sets and models.

A registered class is a frozen dataclass with a ``card``. Its fields are the parameters that a user
may set (``dmlbench.core.spec``); an instance is one configuration.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
import typing
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from dmlbench.common.errors import UserError
from dmlbench.common.suggest import unknown
from dmlbench.core.papers import Paper


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


C = TypeVar("C", bound=Component)


class Registry(Generic[C]):
    """All classes of one kind by their name, from a built-in package and from entry points.

    Args:
        kind: singular noun used in messages, e.g. ``"attack"``.
        group: name of the built-in package, whose modules register their classes when they are
            imported, and also of the entry-point group for other packages, e.g.
            ``"dmlbench.attacks"``.
        required: attributes that a class must have besides its card, e.g. ``("columns",)``.
    """

    def __init__(self, kind: str, group: str, required: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self._group = group
        self._required = required
        self._classes: dict[str, type[C]] = {}
        self._loaded = False

    def register(self, cls: type[C]) -> type[C]:
        """Add a class under the name on its card; used as a decorator.

        Raises:
            ValueError: another class has the same name. The message names both source files.
        """
        name = cls.card.name
        known = self._classes.get(name)
        if known is not None and known is not cls:
            raise ValueError(
                f"{self.kind} {name!r} is registered twice: in {_place(known)} and in {_place(cls)}"
            )
        self._classes[name] = cls
        return cls

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
            raise TypeError(f"it must be a dataclass that derives from the base of a {self.kind}")
        card: object = getattr(cls, "card", None)
        if not isinstance(card, Card):
            raise TypeError("it has no card")
        missing = [name for name in self._required if not hasattr(cls, name)]
        if missing:
            raise TypeError(f"it lacks {', '.join(missing)}")
        typing.get_type_hints(cls)

    def _unknown(self, name: str) -> str:
        if name.lower() in self._classes:
            return f"unknown {self.kind} {name!r}: names are lower case: {name.lower()!r}"
        return unknown(self.kind, name, self.names())

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self._group)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._group}.{module.name}")
        for entry in importlib.metadata.entry_points(group=self._group):
            try:
                cls = entry.load()
                self._validate(cls)
                self.register(cls)
            except Exception as error:  # a broken plugin must not take the command line down
                warnings.warn(
                    f"plugin {self.kind} {entry.name!r} ({entry.value}) is left out: {error}",
                    stacklevel=2,
                )


def _place(cls: type[Component]) -> str:
    try:
        return f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):
        return f"{cls.__module__}.{cls.__qualname__}"
