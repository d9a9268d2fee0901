"""The measurements that a comparison of two models leaves out, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from dmlbench.analysis.compare import Key, by_key, paired_seeds
from dmlbench.analysis.records import Record
from dmlbench.core.naming import parameters

MOST = 6  # attacks that are named
SETTINGS = {
    "suite": "suite {}",
    "queries": "{} queries",
    "precision": "{}",
    "eot": "EoT {}",
    "data": "images {:.8}",
}
ABSENT = {"queries": "all queries", "eot": "no EoT", "data": "unknown images"}

Keys = Mapping[Key, str]  # a measurement without its metric -> its attack, in short


def left_out(a: Iterable[Record], b: Iterable[Record]) -> str:
    """One line that names the attacks that are not compared, and why; empty if there are none.

    Args:
        a, b: the records of both models.
    """
    ours, theirs = by_key(a), by_key(b)
    seeds = [
        {key: {i: by for i, (_, by) in s.items()} for key, s in x.items()} for x in (ours, theirs)
    ]
    shared = {k for k in ours.keys() & theirs.keys() if paired_seeds(*(one[k] for one in seeds))}
    compared = {replace(key, metric="") for key in shared}
    sides = [
        {
            replace(key, metric=""): next(iter(seeds.values()))[0]["attack"] or "clean images"
            for key, seeds in side.items()
        }
        for side in (ours, theirs)
    ]
    both = sides[0].keys() & sides[1].keys()
    alone = [{k: v for k, v in one.items() if k not in both} for one in sides]
    unlike = dict.fromkeys(v for k, v in sides[0].items() if k in both - compared)
    found = []
    if any(alone):
        found.append(f"only one of them has it: {_few(_alone(alone, sides))}")
    if unlike:
        found.append(f"their versions or seeds differ: {_few([*unlike])}")
    return "; ".join(f"left out, because {one}" for one in found)


def _alone(alone: Sequence[Keys], sides: Sequence[Keys]) -> list[str]:
    """``es with 10 queries (A), with 20 queries (B)`` for each attack that one model has alone."""
    said: dict[str, list[str]] = {}
    for side, keys in zip("AB", alone, strict=True):
        for key, attack in keys.items():
            same = [k for one in sides for k, name in one.items() if name == attack]
            words = _setting(key, same)
            said.setdefault(attack, []).append(f"with {words} ({side})" if words else f"({side})")
    return [f"{attack} {', '.join(words)}" for attack, words in said.items()]


def _setting(key: Key, others: Sequence[Key]) -> str:
    """What tells a measurement from others of the attack: ``10 queries, steps=32``."""
    words = []
    for name, form in SETTINGS.items():
        if len({getattr(one, name) for one in others}) > 1:
            value = getattr(key, name)
            words.append(form.format(value) if value else ABSENT[name])
    known = [parameters(one.attack) for one in others]
    for name, value in parameters(key.attack).items():
        if len({one.get(name) for one in known}) > 1:
            words.append(f"{name}={value}")
    return ", ".join(words)


def _few(texts: Sequence[str]) -> str:
    rest = len(texts) - MOST
    return ", ".join(texts[:MOST]) + (f" and {rest} more" if rest > 0 else "")
