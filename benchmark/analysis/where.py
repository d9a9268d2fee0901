"""Conditions of ``--where``: ``key=text`` in any letter case.

``*`` stands for any text, and ``|`` between several texts of which one must match.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmlbench.common.errors import UserError
from dmlbench.common.suggest import unknown
from dmlbench.core.naming import with_plain_paths

DIGESTS = ("data", "checkpoint_sha256")  # columns that nobody writes out: 12 digits and * will do


@dataclass(frozen=True)
class Condition:
    """A condition: the value of ``key`` must match ``pattern`` as a whole."""

    key: str
    pattern: re.Pattern[str]

    def meets(self, *texts: str) -> bool:
        """True if one of the values of the key matches."""
        return any(self.pattern.fullmatch(text) for text in texts)


def condition(text: str, keys: Collection[str]) -> Condition:
    """The condition in ``text``, ``defense=hm*`` or ``defense=act[r]|act[s]``.

    Raises:
        UserError: it is not ``key=text``, or the key is not one of ``keys``.
    """
    key, equals, wanted = text.partition("=")
    if not equals:
        raise UserError(f"--where {text!r} is not key=value, e.g. --where 'defense=hm*'")
    if key not in keys:
        raise UserError(unknown("key of --where", key, keys))
    texts = wanted.split("|")
    texts = [with_plain_paths(one) for one in texts] if key == "dataset" else texts
    pattern = "|".join(".*".join(map(re.escape, one.split("*"))) for one in texts)
    return Condition(key, re.compile(pattern, re.IGNORECASE | re.DOTALL))


def choices(rows: Iterable[Mapping[str, Any]], keys: Sequence[str]) -> str:
    """The conditions that tell rows apart: ``seed=0 data=ad6b17a0c9f2*; seed=1 data=...``."""
    kinds = {tuple(str(row[key]) for key in keys) for row in rows}
    differing = [i for i, values in enumerate(zip(*kinds, strict=True)) if len(set(values)) > 1]

    def said(kind: tuple[str, ...], i: int) -> str:
        return f"{keys[i]}={kind[i][:12]}*" if keys[i] in DIGESTS else f"{keys[i]}={kind[i]}"

    return "; ".join(sorted(" ".join(said(kind, i) for i in differing) for kind in kinds))
