"""Measure a random part of a bundle again, and hold what it claims against that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dmlbench.analysis.records import tidy
from dmlbench.common.errors import UserError
from dmlbench.common.lazy import np
from dmlbench.common.text import first_line
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.metrics.names import CLEAN_SUFFIX, OVER_STARTS
from dmlbench.storage.cell import Cell
from dmlbench.submission.agreement import (
    Agreement,
    Refused,
    agreement,
    differs_alone,
    unexplained,
)
from dmlbench.submission.claims import Claim
from dmlbench.submission.outcomes import SLACK, bounds, task_is_attack
from dmlbench.sweep.session import Session
from dmlbench.sweep.tasks import Combine, Measure

if TYPE_CHECKING:
    from dmlbench.evaluation.evaluator import Evaluation
    from dmlbench.evaluation.measurement import Measurement
    from dmlbench.submission.outcomes import Outcomes

STARTS_SLACK = 1.0  # points beside the range of the new starts of k-means, and of its ends
SIGNS = {"mean_cosine": 0.01, "effective_rank": 0.05}  # of a collapse; relative difference allowed


@dataclass
class _Part:
    """A cell, the queries that its row attacks, and those of them that were measured again."""

    cell: Cell
    task: Measure
    asked: list[int]
    sample: list[int]
    found: Measurement
    numbers: list[Agreement]

    @property
    def doubtful(self) -> bool:
        """True if the sample speaks against the row."""
        return any(not one.close for one in self.numbers) or bool(
            _missing_flags(self.cell, self.found)
        )


def measured_again(
    session: Session,
    cells: Sequence[Cell],
    claimed: Claim,
    outcomes: Mapping[str, Outcomes],
    asked: Callable[[Cell], list[int]],
    queries: int,
    seed: int,
) -> tuple[list[Agreement], list[str]]:
    """Measure clean images and a sample of each attack again, and hold the claim against them.

    All queries of an attack are measured where its sample differs by more than the tolerance, or in
    a single outcome while no other attack does: that is no rounding of another machine.

    Args:
        session: the data set, and where to run.
        cells: the cells of the bundle.
        claimed: their plan.
        outcomes: identity of each cell -> its claimed outcomes.
        asked: gives the positions of the queries that the row of a cell attacks.
        queries: number of queries of an attack in the sample.
        seed: draws them.

    Returns:
        Each number that was measured again, and the reasons to refuse the bundle.
    """
    from dmlbench.sweep.worker import Worker

    with Worker(session) as worker:
        try:
            evaluation = worker.evaluation(claimed.weights)
        except (MemoryError, RuntimeError) as error:  # a network larger than this machine
            said = first_line(error, "out of memory")
            raise UserError(f"the network of the bundle cannot be built here: {said}") from None
        generator = np.random.default_rng(seed)
        parts = []
        for cell in cells:
            task = claimed.tasks[cell.id]
            if isinstance(task, Combine):
                continue
            pool = asked(cell)
            size = min(queries, len(pool))
            sample = sorted(int(i) for i in generator.choice(pool, size, replace=False))
            if not task_is_attack(task) or cell.about.eot:
                sample = pool  # what a randomised network draws depends on the batch
            found = _again(evaluation, task, sample)
            whole = len(sample) == len(pool)
            numbers = list(_held(cell, task, outcomes[cell.id], found, sample, whole))
            parts.append(_Part(cell, task, pool, sample, found, numbers))
        every = [one for part in parts for one in part.numbers]
        for part in parts:
            doubtful = part.doubtful or any(differs_alone(one, every) for one in part.numbers)
            if doubtful and len(part.sample) < len(part.asked):
                title = part.task.title
                session.reporter.say(f"{title}: the sample differs, so all queries are measured")
                part.found = _again(evaluation, part.task, part.asked)
                claims = outcomes[part.cell.id]
                held = _held(part.cell, part.task, claims, part.found, part.asked, True)
                part.numbers = list(held)
    compared = sum(len(outcomes[part.cell.id]) for part in parts)
    every = [replace(one, compared=compared) for part in parts for one in part.numbers]
    reasons = [_said(one) for one in every if one.refused]
    reasons += [one for part in parts for one in _other_findings(part.cell, part.found)]
    alone = [one for one in unexplained(every) if not one.refused]
    reasons += [f"{_said(one)}, and nothing else does, so it is not rounding" for one in alone]
    return [replace(one, alone=True) if one in alone else one for one in every], reasons


def _said(one: Agreement) -> str:
    return (
        f"{one.attack or 'clean images'}: {one.metric} is claimed as {one.claimed:.4g} and "
        f"measured as {one.measured:.4g} on {one.n:,} queries; {one.differing:,} of them differ"
    )


def _again(evaluation: Evaluation, task: Measure, sample: Sequence[int]) -> Measurement:
    """Measure a cell anew, an attack on some of the queries."""
    if task.attack is None:
        return evaluation.benign()
    return evaluation.attack(
        task.attack, task.weights.seed, task.title, sample, recalls=task.recalls
    )


def _held(
    cell: Cell,
    task: Measure,
    claimed: Outcomes,
    found: Measurement,
    sample: Sequence[int],
    complete: bool,
) -> Iterator[Agreement]:
    """Each column of outcomes against the new ones; those of clean images are not shown."""
    wanted = [one for one in found.outcomes if one.removesuffix(CLEAN_SUFFIX) in cell.metrics]
    for column in wanted:
        if column not in claimed:
            raise Refused(f"{cell.about.attack or 'clean images'}: no outcomes of {column!r} in it")
    for column, values in claimed.items():
        name = column.removesuffix(CLEAN_SUFFIX)
        if column not in found.outcomes or name not in cell.metrics:
            raise Refused(
                f"{cell.about.attack or 'clean images'}: it has no outcomes of {column!r}"
            )
        measured = np.asarray(found.outcomes[column], dtype=np.float64)
        one = agreement(
            values[list(sample)],
            measured[list(sample)],
            cell.metrics[name],
            complete,
            bounds(task, column),
            metric=column,
            attack=cell.about.attack,
            suite=cell.about.suite,
        )
        if name == column or not one.close:
            yield one


def _missing_flags(cell: Cell, found: Measurement) -> list[str]:
    """Flags that the new measurement raises and the cell does not have; notes do not count."""
    raised = {flag["name"] for flag in found.findings.get("flags", ()) if not flag.get("note")}
    return sorted(raised - {flag.name for flag in cell.flags if not flag.note})


def _of_starts(stated: Estimate, own: Estimate) -> bool:
    """True if a number over starts of k-means is within the new range, and its ends are the same.

    Measurements of a single start, as older versions made them, have no range.
    """
    low = own.value if own.low is None else own.low
    high = own.value if own.high is None else own.high
    ends = ((stated.low, low), (stated.high, high))
    return (
        stated.n == own.n
        and low - STARTS_SLACK <= stated.value <= high + STARTS_SLACK
        and all(one is None or abs(one - new) <= STARTS_SLACK for one, new in ends)
    )


def _over(one: Estimate) -> str:
    ends = "" if one.low is None else f" in [{one.low:.4g}, {one.high:.4g}]"
    return f"{one.value:.4g}{ends} (n = {one.n:,})"


def _other_findings(cell: Cell, found: Measurement) -> list[str]:
    """Reasons to refuse that are no statistic of the outcomes."""
    name, again = cell.about.attack or "clean images", found.findings
    reasons = [f"{name}: it lacks the flag '{flag}'" for flag in _missing_flags(cell, found)]
    if cell.about.attack:
        return reasons
    for metric in found.metrics.keys() & set(OVER_STARTS):  # a set of listed answers has none
        stated, own = cell.metrics[metric], found.metrics[metric]
        if not _of_starts(stated, own):
            said = f"is claimed as {_over(stated)}, measured as {_over(own)}"
            reasons.append(f"{name}: {metric} {said}")
    for sign, slack in SIGNS.items():
        claimed, measured = cell.findings.get(sign), again[sign]
        if claimed is None or abs(claimed - measured) > slack * max(1.0, abs(measured)):
            reasons.append(f"{name}: {sign} is claimed as {claimed}, measured as {measured:.4g}")
    chance = "chance R@1"  # it follows from the classes alone; older cells have none
    claimed = cell.findings.get(chance, again[chance])
    if not math.isclose(claimed, again[chance], rel_tol=SLACK):
        reasons.append(f"{name}: {chance} is claimed as {claimed:.4g}, it is {again[chance]:.4g}")
    shown = {cell.findings.get("collapsed"), *(row["collapsed"] for row in tidy([cell]))}
    if shown != {again["collapsed"]}:
        said = "collapsed" if again["collapsed"] else "not collapsed"
        reasons.append(f"{name}: the model is {said}, and its rows do not say so")
    return reasons
