"""Names that tell models apart, and their order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import PurePath
from typing import Any

from dmlbench.common.numbers import LARGEST
from dmlbench.core.parameters import spelt, unquoted

DATASET_NAME = r"[\w.-]*\w"
"""Pattern of the name of a data set: the files of its board have that name too."""
ATTACK_SEED = "attack_seed"
"""Key in the spec of an attack whose targets have another seed than the training of the model."""
_NUMBER = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)(?:/([1-9]\d*))?(?![\w.])")

PATHS = ("root", "train_list", "test_list", "query", "gallery", "positives", "sources")
"""Keys of the data set ``folder`` whose values are paths."""
_PATH = re.compile(rf'(?<=[:,])({"|".join(PATHS)})=("(?:[^"\\]|\\.)*"|[^",]+)')
_BETWEEN_COMMAS = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^,"])+')  # commas that stand in no quotes


def parameters(spec: str) -> dict[str, str]:
    """The parameters in a spec: ``es:eps=77/255,steps=32`` gives ``{"eps": "77/255", ...}``.

    A value in quotes is a spec of its own, whose parameters are not among them.
    """
    pairs = (part.partition("=") for part in _BETWEEN_COMMAS.findall(spec.partition(":")[2]))
    return {key: value for key, equals, value in pairs if equals}


def with_plain_paths(dataset: str) -> str:
    """The spec of a data set as tables have it; older versions kept each spelling of a path.

    >>> with_plain_paths("folder:root=./photos/,train_classes=5")
    'folder:root=photos,train_classes=5'
    """
    if not dataset.startswith("folder:"):
        return dataset

    def plain(found: re.Match[str]) -> str:
        path = unquoted(found[2])
        return f"{found[1]}={spelt(str(PurePath(path)))}" if path else found[0]

    return _PATH.sub(plain, dataset)


def without_paths(dataset: str) -> str:
    """The spec of a data set without the places of its files.

    >>> without_paths("folder:root=photos,train_classes=5")
    'folder:root=,train_classes=5'
    """
    return _PATH.sub(lambda found: f"{found[1]}=", dataset) if ":" in dataset else dataset


def variant(attack: str) -> str:
    """The keys of an attack's spec, as headings have them in brackets behind the metric.

    ``network`` is left out where ``from`` stands: the digest of the weights names the model, and
    the network would be most of the heading.

    >>> variant('transfer:from=w@1a2b3c4d,network="timm:name=x"')
    'from=w@1a2b3c4d'
    """
    keys = parameters(attack)
    if "from" not in keys:
        return attack.partition(":")[2]
    return ",".join(f"{key}={value}" for key, value in keys.items() if key != "network")


def split_heading(heading: str) -> tuple[str, dict[str, str]]:
    """The metric of a heading, and the keys in its brackets, which ``variant`` has put there.

    >>> split_heading("CA+ (eps=4/255,w=5)")
    ('CA+', {'eps': '4/255', 'w': '5'})
    """
    metric, _, keys = heading.partition(" (")
    return metric, parameters(f":{keys.removesuffix(')')}")


def at_other_radius(spec: str) -> bool:
    """True if the spec of an attack, or of a score drawn from attacks, changes ``eps``."""
    return "eps" in parameters(spec)


def with_attack_seed(attack: str, seed: int) -> str:
    """The spec of an attack, or of a score, in a row whose attacks have another seed.

    >>> with_attack_seed("ca+:w=5", 3)
    'ca+:w=5,attack_seed=3'
    """
    return f"{attack}{',' if ':' in attack else ':'}{ATTACK_SEED}={seed}"


def split_attack_seed(attack: str) -> tuple[str, int | None]:
    """The spec without the seed, and the seed, that ``with_attack_seed`` put together."""
    found = re.fullmatch(rf"(.*)[:,]{ATTACK_SEED}=([0-9]{{1,19}})", attack)
    if found is None or int(found[2]) > LARGEST:
        return attack, None
    return found[1], int(found[2])


def seeds_in_words(seeds: Sequence[int]) -> str:
    """``seed 0``, or ``seeds 0, 1 and 2``."""
    named = ", ".join(map(str, seeds[:-1]))
    named += " and " * bool(named) + "".join(map(str, seeds[-1:]))
    return f"seed{'s' * (len(seeds) > 1)} {named}"


def told_apart(names: Sequence[str], details: Sequence[Mapping[str, str]]) -> list[str]:
    """The names; one that stands for things with different details gets those that differ.

    Example: ``HM[S,g_LGA]`` of ``{"eta": "8", "margin": "0.2"}`` and of ``{"eta": "32", "margin":
    "0.2"}`` becomes ``HM[S,g_LGA], eta=8`` and ``HM[S,g_LGA], eta=32``. A name of its own stays as
    it is, and so do equal names with equal details.

    Args:
        names: one for each thing.
        details: key -> value of each thing; a key may be missing.
    """
    groups: dict[str, list[Mapping[str, str]]] = {}
    for name, known in zip(names, details, strict=True):
        groups.setdefault(name, []).append(known)
    return [
        ", ".join([name, *(f"{k}={known[k]}" for k in _differing(groups[name]) if known.get(k))])
        for name, known in zip(names, details, strict=True)
    ]


def _differing(details: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys whose values are not all the same, in the order in which they first appear."""
    keys = dict.fromkeys(key for known in details for key in known)
    return [key for key in keys if len({known.get(key) for known in details}) > 1]


@cache
def by_number(text: str) -> tuple[Any, ...]:
    """Sort key by which numbers in a text sort as numbers: ``eps=2/255`` before ``eps=16/255``.

    Other texts sort as they are.
    """
    parts, end = [], 0
    for found in _NUMBER.finditer(text):
        parts.append((text[end : found.start()], float(found[1]) / float(found[2] or 1)))
        end = found.end()
    return (*parts, (text[end:], -1.0)), text  # pairs, so that like is compared with like
