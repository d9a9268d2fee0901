"""The measurements that a comparison of two models leaves out, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from dmlbench.analysis.compare import Key, by_key, paired_seeds
from dmlbench.analysis.records import Record
from dmlbench.core.naming import parameters

MOST = 4  # attacks of a setting, and settings, that are named
SETTINGS = {
    "suite": "suite {}",
    "queries": "{} queries",
    "precision": "{}",
    "eot": "EoT {}",
    "data": "images {:.8}",
}
ABSENT = {"queries": "all queries", "eot": "no EoT", "data": "unknown images"}


def left_out(a: Iterable[Record], b: Iterable[Record]) -> str:
    """One line that names the attacks that are not compared, and why; empty if there are none.

    Args:
        a, b: the records of both models.
    """
    sides = [by_key(a), by_key(b)]
    compared, names = set(), []  # measurements without their metric; names: -> attack, in short
    for key in sides[0].keys() & sides[1].keys():
        if paired_seeds(*({i: by for i, (_, by) in side[key].items()} for side in sides)):
            compared.add(replace(key, metric=""))
    for side in sides:
        first = {replace(key, metric=""): next(iter(seeds.values())) for key, seeds in side.items()}
        names.append({key: one["attack"] or "clean images" for key, (one, _) in first.items()})
    both = names[0].keys() & names[1].keys()
    every = [(key, name) for side in names for key, name in side.items()]
    found = []
    for letter, named in zip("AB", names, strict=True):
        alone = [(key, name) for key, name in named.items() if key not in both]
        if alone:
            found.append(f"only {letter} has {_in_words(alone, every)}")
    unlike = [(key, name) for key, name in names[0].items() if key in both - compared]
    if unlike:
        found.append(f"of other versions or seeds are {_in_words(unlike, every)}")
    return f"left out: {'; '.join(found)}" if found else ""


def _in_words(some: Sequence[tuple[Key, str]], every: Sequence[tuple[Key, str]]) -> str:
    """``ca+, es with 10 queries; ltm with 20 queries``: the attacks of each setting together."""
    by_setting: dict[str, list[str]] = {}
    for key, name in some:
        setting = _setting(key, [other for other, its in every if its == name])
        by_setting.setdefault(setting, []).append(name)
    said = [_few(of) + f" with {how}" * bool(how) for how, of in by_setting.items()]
    return _few(said, "; ")


def _setting(key: Key, others: Sequence[Key]) -> str:
    """The settings in which a measurement differs from ``others`` of its attack: ``10 queries``."""
    words = []
    for name, form in SETTINGS.items():
        value = getattr(key, name)
        if len({getattr(other, name) for other in others}) > 1:
            words.append(form.format(value) if value else ABSENT[name])
            others = [other for other in others if getattr(other, name) == value]
    known = [parameters(other.attack) for other in others]
    for name, value in parameters(key.attack).items():
        if len({keys.get(name) for keys in known}) > 1:
            words.append(f"{name}={value}")
    return ", ".join(words)


def _few(texts: Sequence[str], between: str = ", ") -> str:
    rest = len(texts) - MOST
    return between.join(texts[:MOST]) + f" and {rest} more" * (rest > 0)
