"""The findings of a cell that tables show; all else that a cell found is free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class ShownFindings(msgspec.Struct, frozen=True):
    """Findings with a column in the exports.

    Attributes:
        clean: metric -> its value on the clean images.
        deciles: metric -> minimum, nine deciles and maximum over the queries, or nothing.
        collapsed: True if the model retrieves nothing any more.
        mean_cosine, effective_rank: the signs of a collapse.
    """

    clean: dict[str, float] = {}
    deciles: dict[str, list[float]] = {}
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
    return ""
