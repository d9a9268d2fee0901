"""Outcomes of queries, and the result of an attack on a batch of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dmlbench.attacks.engine.column import Column
from dmlbench.attacks.engine.objective import Objective
from dmlbench.attacks.engine.optimizer import Perturbed
from dmlbench.common.errors import CellError
from dmlbench.common.lazy import torch
from dmlbench.metrics.distance import SLACK, Metric

Outcomes = dict[str, "torch.Tensor"]
"""Column name -> (B,) values, one for each query; NaN: the query does not count in the mean."""


class Goal(Objective, Protocol):
    """An objective that also computes the outcome of each sample."""

    def outcome(self, e: torch.Tensor) -> Outcomes:
        """Column name -> (B,) values for the embeddings ``e`` (B, D)."""
        ...


@dataclass(frozen=True)
class Attacked:
    """A batch after an attack.

    Attributes:
        outcomes: of the adversarial images; with restarts, the worst for each query and column.
        clean: the same of the clean images (eps = 0).
        perturbed: adversarial images and cost; with restarts, the images of the restart that was
            worst in the first column, and the cost of all restarts together.
        observed: name -> (B,) what ``Attack.observe`` gives, of the same restart.
        last: column -> (B,) outcomes of the last iterate, where the best one is returned; else
            empty.
    """

    outcomes: Outcomes
    clean: Outcomes
    perturbed: Perturbed
    observed: Outcomes
    last: Outcomes


def mean_outcomes(draws: int, make: Callable[[], Outcomes]) -> Outcomes:
    """The mean of the outcomes that ``make`` gives in so many draws of a randomised network."""
    if draws == 1:
        return make()
    found = [make() for _ in range(draws)]
    return {name: torch.stack([one[name] for one in found]).mean(0) for name in found[0]}


def check_outcomes(
    name: str, columns: Sequence[Column], outcomes: Outcomes, rows: int, metric: Metric
) -> None:
    """CellError unless there are ``rows`` numbers a column, within its bounds (or NaN)."""
    expected = {column.name for column in columns}
    if set(outcomes) != expected:
        raise CellError(f"{name} must report {expected}, got {set(outcomes)}")
    for column in columns:
        value, (low, high) = outcomes[column.name], column.within(metric)
        what = f"{name}: outcome {column.name}"
        if value.shape != (rows,) or value.isinf().any():
            raise CellError(f"{what} must be {rows} finite numbers")
        outside = value[(value < low - SLACK) | (value > high + SLACK)]
        if len(outside):
            raise CellError(
                f"{what} is {float(outside[0]):g}{column.unit} for a query; it must be "
                f"within {low} and {high}"
            )


def worse_outcomes(columns: Sequence[Column], a: Outcomes, b: Outcomes) -> Outcomes:
    """Per query and column the outcome that is worse for the defender."""
    found = {}
    for column in columns:
        pick = torch.minimum if column.better == "higher" else torch.maximum
        found[column.name] = pick(a[column.name], b[column.name])
    return found


def worse(columns: Sequence[Column], a: Attacked, b: Attacked) -> Attacked:
    """Two attacks on a batch as one: ``worse_outcomes``, and the cost of both."""
    outcomes = worse_outcomes(columns, a.outcomes, b.outcomes)
    first = columns[0].name
    newer = outcomes[first] != a.outcomes[first]
    p, q = a.perturbed, b.perturbed
    images = torch.where(newer[:, None, None, None], q.images, p.images)
    last = torch.where(newer[:, None], q.last_embeddings, p.last_embeddings)
    merged = dataclasses.replace(
        q,
        images=images,
        passes=p.passes + q.passes,
        full_passes=p.full_passes + q.full_passes,
        last_embeddings=last,
        flat_start=p.flat_start & q.flat_start,
        forward_passes=p.forward_passes + q.forward_passes,
        full_forward_passes=p.full_forward_passes + q.full_forward_passes,
    )
    observed = {
        name: torch.where(newer, b.observed[name], value) for name, value in a.observed.items()
    }
    before = {name: torch.where(newer, b.last[name], value) for name, value in a.last.items()}
    return Attacked(outcomes, a.clean, merged, observed, before)
