"""The findings that tables show and that must have a certain form.

Any other finding of a cell may have any form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from dmlbench.core.flags import Flag


class ShownFindings(msgspec.Struct, frozen=True):
    """Findings with a column in the exports.

    Attributes:
        clean: metric -> its value on the clean images.
        deciles: metric -> minimum, nine deciles and maximum over the queries, or nothing.
        curves: metric -> points (x, share of queries above it in percent) by rising x, or nothing.
        flags: reasons not to trust the numbers.
        collapsed: True if the model retrieves nothing any more.
        mean_cosine, effective_rank: the signs of a collapse.
    """

    clean: dict[str, float] = {}
    deciles: dict[str, list[float]] = {}
    curves: dict[str, list[tuple[float, float]]] = {}
    flags: tuple[Flag, ...] = ()
    collapsed: bool | None = None
    mean_cosine: float | None = None
    effective_rank: float | None = None


def problem(findings: Mapping[str, Any]) -> str:
    """The reason why findings cannot be exported; empty if they can."""
    try:
        shown = msgspec.convert(findings, ShownFindings)
    except msgspec.ValidationError as error:
        return f"its findings are wrong: {error}"
    for name, values in shown.deciles.items():
        if len(values) not in (0, 11) or values != sorted(values):
            return f"the deciles of {name} are not eleven rising numbers"
    for name, points in shown.curves.items():
        shares = [share for _, share in points]
        if points != sorted(points) or shares != sorted(shares, reverse=True):
            return f"the curve of {name} does not fall over rising x"
    return ""
