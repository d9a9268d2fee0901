"""Completion of specs in a shell: names, then keys, then the values that a key may have.

``dmlbench --help`` says how a shell is told of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from dmlbench.core.registry import Registry

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def specs(kind: str) -> Complete:
    """The completion of a spec of ``attacks``, ``defenses``, ``datasets`` or ``models``."""

    def complete(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
        return list(_items(_registry(kind), begun))

    return complete


def _registry(kind: str) -> Registry[Any]:
    from dmlbench.attacks.base import ATTACKS
    from dmlbench.datasets.base import DATASETS
    from dmlbench.defenses.base import DEFENSES
    from dmlbench.models.base import MODELS

    found: dict[str, Registry[Any]] = {
        "attacks": ATTACKS,
        "defenses": DEFENSES,
        "datasets": DATASETS,
        "models": MODELS,
    }
    return found[kind]


def _items(registry: Registry[Any], begun: str) -> Iterator[CompletionItem]:
    """The continuations of ``begun``: of ``h`` hm, of ``hm:s`` hm:source=, and its values."""
    from dmlbench.core import spec

    name, colon, rest = begun.partition(":")
    if not colon:
        for cls in registry:
            if cls.card.name.startswith(name):
                yield CompletionItem(cls.card.name, help=cls.card.summary)
        return
    if name not in registry.names():
        return
    done, comma, pair = rest.rpartition(",")
    before = f"{name}:{done}{comma}"
    key, equals, value = pair.partition("=")
    taken = {one.partition("=")[0] for one in done.split(",")}
    for one in spec.parameters(registry.get(name)):
        if not equals and one.key.startswith(key) and one.key not in taken:
            yield CompletionItem(f"{before}{one.key}=", help=one.help)
        elif equals and one.key == key:
            usual = [] if one.required or one.default is None else [one.show(one.default)]
            values = dict.fromkeys([*map(one.show, one.choices or _truths(one.type)), *usual])
            for text in values:
                if text.startswith(value):
                    yield CompletionItem(f"{before}{key}={text}", help=one.help)


def _truths(kind: type) -> tuple[bool, ...]:
    return (True, False) if kind is bool else ()
