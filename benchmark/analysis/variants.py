"""Flags that follow from several cells of a model: one attack with other values of its keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

from dmlbench.core import flags
from dmlbench.core.flags import Flag
from dmlbench.core.naming import ATTACK_SEED, parameters, split_attack_seed
from dmlbench.metrics.names import RECALLS

Variant = tuple[str, Mapping[str, Any], dict[str, str]]  # heading, its tidy record, its keys


def variant_flags(records: Mapping[str, Mapping[str, Any]], suite: str) -> dict[str, list[Flag]]:
    """Heading -> flags of the columns in percent.

    R@1 after an attack must not be above that of the clean image, nor above the least one in any
    smaller ball, which the larger one contains. A note says where
    random starts (suite auto alone: the other suites are known to search weakly) or the optimizer
    matter, of ranks too.

    Args:
        records: heading -> tidy record, of one model, suite and number of queries.
        suite: of the records.
    """
    variants: list[Variant] = [
        (heading, record, parameters(record["attack_resolved"]) | _seed(record["attack"]))
        for heading, record in records.items()
        if record["unit"] == "%" and record["attack_resolved"]
    ]
    recalls = [one for one in variants if one[1]["metric"] in RECALLS]
    found: dict[str, list[Flag]] = {}
    for group in _alike(recalls, ("eps", "alpha")):
        by_eps = sorted(group, key=lambda one: _eps(one[2]))
        for heading, record, keys in by_eps:
            clean, here = ("0", record["clean"]), (keys.get("eps", ""), record["value"])
            if isinstance(clean[1], float) and _eps(keys):
                risen = flags.rising(record["metric"], clean, here, record["n"])
                found.setdefault(heading, []).extend(risen)
            smaller = [one for one in by_eps if _eps(one[2]) < _eps(keys)]
            if smaller:
                _, least, its = min(smaller, key=lambda one: one[1]["value"])
                there, n = (its.get("eps", ""), least["value"]), min(least["n"], record["n"])
                found.setdefault(heading, []).extend(flags.rising(record["metric"], there, here, n))
    for group in _alike(variants, ("restarts",)):
        for heading, record, plain, drawn in _against_plain(group, "restarts"):
            if suite == "auto":
                differ = flags.starts(record["metric"], plain, drawn, record["better"])
                found.setdefault(heading, []).extend(differ)
    for group in _alike(variants, ("optimizer", "alpha")):
        for heading, record, usual, other in _against_plain(group, "optimizer"):
            both = (other, usual) if suite == "auto" else (usual, other)  # PGD, APGD
            found.setdefault(heading, []).extend(flags.optimizers(record["metric"], *both))
    return {heading: some for heading, some in found.items() if some}


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
