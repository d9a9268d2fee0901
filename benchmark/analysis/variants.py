"""Flags that follow from several cells of a model: one attack with other values of its keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import chain
from typing import Any

from dmlbench.core import flags
from dmlbench.core.flags import Flag
from dmlbench.core.naming import ATTACK_SEED, parameters, split_attack_seed
from dmlbench.metrics.names import RECALLS

Variant = tuple[str, Mapping[str, Any], dict[str, str]]  # heading, its tidy record, its keys
Raised = Iterator[tuple[str, list[Flag]]]  # heading, its flags


def variant_flags(records: Mapping[str, Mapping[str, Any]], suite: str) -> dict[str, list[Flag]]:
    """Heading -> flags of the columns in percent.

    R@1 after an attack must not be above that of the clean image, nor above the least one in any
    smaller ball, which the larger one contains. A note says where random starts (suite auto alone:
    the other suites are known to search weakly) or the optimizer matter, of ranks too.

    Args:
        records: heading -> tidy record, of one model, suite and number of queries.
        suite: of the records.
    """
    variants: list[Variant] = [
        (heading, record, parameters(record["attack_resolved"]) | _seed(record["attack"]))
        for heading, record in records.items()
        if record["unit"] == "%" and record["attack_resolved"]
    ]
    found: dict[str, list[Flag]] = {}
    every = (_of_balls(variants), _of_starts(variants, suite), _of_optimizers(variants, suite))
    for heading, some in chain.from_iterable(every):
        found.setdefault(heading, []).extend(some)
    return {heading: some for heading, some in found.items() if some}


def _of_balls(variants: Iterable[Variant]) -> Raised:
    """R@1 that is above that of the clean image, or above the least one in a smaller ball."""
    recalls = [one for one in variants if one[1]["metric"] in RECALLS]
    for group in _alike(recalls, ("eps", "alpha")):
        by_eps = sorted(group, key=lambda one: _eps(one[2]))
        for heading, record, keys in by_eps:
            clean, here = ("0", record["clean"]), (keys.get("eps", ""), record["value"])
            if isinstance(clean[1], float) and _eps(keys):
                yield heading, flags.rising(record["metric"], clean, here, record["n"])
            smaller = [one for one in by_eps if _eps(one[2]) < _eps(keys)]
            if smaller:
                _, least, its = min(smaller, key=lambda one: one[1]["value"])
                there, n = (its.get("eps", ""), least["value"]), min(least["n"], record["n"])
                yield heading, flags.rising(record["metric"], there, here, n)


def _of_starts(variants: Iterable[Variant], suite: str) -> Raised:
    """Random starts that matter; only of suite auto, as the others are known to search weakly."""
    if suite == "auto":
        for group in _alike(variants, ("restarts",)):
            for heading, record, plain, drawn in _against_plain(group, "restarts"):
                yield heading, flags.starts(record["metric"], plain, drawn, record["better"])


def _of_optimizers(variants: Iterable[Variant], suite: str) -> Raised:
    """An optimizer that matters."""
    for group in _alike(variants, ("optimizer", "alpha")):
        for heading, record, usual, other in _against_plain(group, "optimizer"):
            both = (other, usual) if suite == "auto" else (usual, other)  # PGD, APGD
            yield heading, flags.optimizers(record["metric"], *both)


def _seed(attack: str) -> dict[str, str]:
    seed = split_attack_seed(attack)[1]
    return {} if seed is None else {ATTACK_SEED: str(seed)}


def _alike(variants: Iterable[Variant], but_for: tuple[str, ...]) -> list[list[Variant]]:
    """Groups of one column whose keys differ in these alone."""
    groups: dict[Any, list[Variant]] = {}
    for heading, record, keys in variants:
        same = frozenset((key, value) for key, value in keys.items() if key not in but_for)
        groups.setdefault((record["metric"], same), []).append((heading, record, keys))
    return list(groups.values())


def _against_plain(
    group: Iterable[Variant], key: str
) -> Iterator[tuple[str, Mapping[str, Any], float, float]]:
    """Each variant with ``key`` beside the one without: heading, record, the value of both."""
    plain = [record["value"] for _, record, keys in group if key not in keys]
    for heading, record, keys in group:
        if key in keys and plain:
            yield heading, record, plain[0], record["value"]


def _eps(keys: Mapping[str, str]) -> Fraction:
    try:
        return Fraction(keys.get("eps", "0"))
    except (ValueError, ZeroDivisionError):  # a CSV that was written by hand
        return Fraction(0)
