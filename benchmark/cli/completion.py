"""Completion of specs in a shell: names, then keys, then the values that a key may have.

docs/index.md says how a shell is told of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    split_arg_string,
)

from dmlbench.cli.registries import registries

if TYPE_CHECKING:
    from dmlbench.core.registry import Registry

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

BASH = r"""
%(complete_func)s() {
    local IFS=$'\n' type value
    COMPREPLY=()
    while IFS=',' read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value"); [[ $value == *= ]] && compopt -o nospace ;;
        esac
    done < <(env COMP_LINE="${COMP_LINE:0:$COMP_POINT}" COMP_BREAKS="$COMP_WORDBREAKS" \
        %(complete_var)s=bash_complete "$1")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


@add_completion_class
class Bash(BashComplete):
    """Completion in bash, which splits a word at ``:`` and ``=`` and replaces the last part only.

    Click's own completion gets these parts as separate words, so it cannot complete a spec. Here
    the line is split as a command is, and of each completion only the part is returned that bash
    replaces.
    """

    source_template = BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, and the one that is being written."""
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)[1:]
        return words, "" if line[-1:].isspace() or not words else words.pop()

    def complete(self) -> str:
        """The completions, a line each: its type, a comma, and what replaces bash's last part."""
        words, begun = self.get_completion_args()
        breaks = set(":=") & set(os.environ.get("COMP_BREAKS", ":="))
        kept = max((begun.rfind(mark) + 1 for mark in breaks), default=0)
        found = self.get_completions(words, begun)
        return "\n".join(f"{one.type},{one.value[kept:]}" for one in found)


def specs(kind: str) -> Complete:
    """The completion of a spec of one of ``registries.KINDS``."""

    def complete(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
        return list(_items(registries()[kind], begun))

    return complete


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
