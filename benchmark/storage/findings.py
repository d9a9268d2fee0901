"""The findings that tables show and that must have a certain form.

Any other finding of a cell may have any form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        if wrong := wrong_deciles(values):
            return f"the deciles of {name} are {wrong}"
    for name, points in shown.curves.items():
        if wrong := wrong_curve(points):
            return f"the curve of {name} is {wrong}"
    return ""


def wrong_deciles(values: Sequence[float]) -> str:
    """The fault of the deciles of a metric, in words; empty if there is none."""
    rising = list(values) == sorted(values)
    return "" if len(values) in (0, 11) and rising else "not eleven rising numbers"


def wrong_curve(points: Sequence[tuple[float, float]]) -> str:
    """The fault of the points (x, share in percent) of a curve; empty if there is none."""
    shares = [share for _, share in points]
    if list(points) != sorted(points) or shares != sorted(shares, reverse=True):
        return "not points x:share with rising x and falling shares"
    if shares and not 0 <= shares[-1] <= shares[0] <= 100:
        return "not points with shares from 0 to 100"
    return ""
