"""The result of a measurement."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from dmlbench.core.flags import Flag
from dmlbench.evaluation.attacked_queries import AttackedQuery
from dmlbench.metrics.bootstrap import Estimate

Outcomes = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Measurement:
    """The result of measuring a model, clean or under one attack.

    Attributes:
        metrics: name -> estimate over queries.
        findings: other results as JSON types: self-checks, signs of a collapse, cost.
        outcomes: name -> (N,) value of each test image (NaN: it does not count as a query).
        kept: of an attack, the first queries with their images, as many as were asked for; none if
            the attack was interrupted.
        seconds_before: time that an attack took before it was interrupted.
    """

    metrics: dict[str, Estimate]
    findings: dict[str, Any]
    outcomes: Outcomes
    kept: list[AttackedQuery] = field(default_factory=list)
    seconds_before: float = 0.0


def as_finding(flags: list[Flag]) -> dict[str, Any]:
    """The flags as a part of a cell's findings; nothing if there are none."""
    return {"flags": msgspec.to_builtins(flags)} if flags else {}
