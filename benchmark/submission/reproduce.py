"""``dmlbench reproduce``: a row of a board or CSV, measured again and compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dmlbench.analysis.records import Record, rows, tidy
from dmlbench.attacks import moved_query
from dmlbench.attacks.base import ATTACKS, Attack
from dmlbench.common.errors import UserError
from dmlbench.core import spec
from dmlbench.core.naming import split_attack_seed
from dmlbench.datasets.base import DATASETS, Dataset
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.submission.row import cell_key, check_scores, chosen_row, refuse_references
from dmlbench.submission.row_weights import weights_of
from dmlbench.sweep import plan
from dmlbench.sweep.requests import whole_number
from dmlbench.sweep.run import run
from dmlbench.sweep.session import Session, open_session
from dmlbench.sweep.tasks import Weights
from dmlbench.training.job import Training

SLACK = 1e-6  # relative: what a number without an interval may differ


@dataclass(frozen=True)
class Compared:
    """A number of a row, and the one that was measured here.

    Attributes:
        heading: as tables have it, ``CA+`` or ``ES:R (eps=4/255)``.
        suite: of the row.
        queries: number of attacked queries, as the row has it; empty: all, or a clean number.
        stated: in the row.
        measured: here; None: it failed.
        same_versions: true if both are of the same version of the measurement and the attack.
    """

    heading: str
    suite: str
    queries: str
    stated: Estimate
    measured: Estimate | None
    same_versions: bool

    @property
    def equal(self) -> bool:
        """True if the number measured here lies within the interval of the row's.

        If the row has no interval (as old rows of NMI), the row's number must lie in the interval
        measured here.
        """
        if self.measured is None:
            return False
        span, one = self.stated, self.measured
        if span.low is None:
            span, one = one, span
        low = span.value if span.low is None else span.low
        high = span.value if span.high is None else span.high
        slack = SLACK * max(1.0, abs(self.stated.value))
        return low - slack <= one.value <= high + slack


@dataclass(frozen=True)
class Reproduction:
    """A row that was measured again.

    Attributes:
        label: the model.
        source: where the weights came from, in words.
        same_weights: true if they are those of the row, to the last bit.
        numbers: each number of the row.
        left_out: the numbers of the row that no attack gives, and why; empty if there is none.
    """

    label: str
    source: str
    same_weights: bool
    numbers: list[Compared]
    left_out: str

    @property
    def equal(self) -> bool:
        """True if every number is."""
        return all(one.equal for one in self.numbers)


def reproduce(
    name: str,
    results: Path,
    *,
    source: Path | None = None,
    where: Sequence[str] = (),
    dataset: str | Dataset | None = None,
    checkpoint: Path | None = None,
    retrain: bool = False,
    allow_code: bool = False,
    **options: Any,
) -> Reproduction:
    """Measure a row again, with its weights if they can be had, else with weights trained anew.

    Args:
        name: the model of the row: its defense, label, the beginning of its checkpoint's digest, or
            a model of the zoo.
        results: where models and cells are kept, so that what was interrupted goes on.
        source: a CSV with one row per metric, or a folder of such; None: ``results`` of the working
            folder, or the card of a model of the zoo.
        where: conditions ``column=text`` on columns of a row, its digests and ``attack``.
        dataset: the data set; None: as the row has it.
        checkpoint: the weights; None: of the zoo, or trained.
        retrain: train also where the weights can be had.
        allow_code: run code that the row or a manifest names.
        options: others of ``open_session``.

    Raises:
        UserError: no row or several answer to the name, or its weights or images cannot be had.
    """
    if checkpoint is not None and retrain:
        raise UserError("--checkpoint names weights and --retrain makes new ones: give one of them")
    wanted, left_out = chosen_row(name, source, where)
    first = wanted[0]
    check_scores(wanted)
    if not allow_code:
        refuse_references(wanted)
    if not isinstance(dataset, Dataset):
        dataset = spec.parse(dataset or first["dataset"], DATASETS)
    options |= {"precision": first["precision"], "eot": whole_number(first["eot"]) or 1}
    with open_session(dataset, results, **options) as session:
        if session.digest != first["data"]:
            raise UserError(
                f"the images are not those of the row ({first['dataset']}, digest "
                f"{first['data'][:12]}): name the data set with --dataset"
            )
        one, how = weights_of(session, first, checkpoint, retrain, allow_code)
        measured = _measured(session, one, wanted)
    digests = {record["checkpoint_sha256"] for record in measured}
    same = digests == {first["checkpoint_sha256"]}
    return Reproduction(first["label"], how, same, _compared(wanted, measured), left_out)


def _measured(session: Session, one: Weights | Training, wanted: Sequence[Record]) -> list[Record]:
    """The records of the same attacks, as they are measured here."""
    cells = []
    parts = [(_of_seed(one, seed), some) for seed, some in _by_attack_seed(wanted).items()]
    for weights, records in parts:
        planned = []
        for queries in dict.fromkeys(r["queries"] for r in records if r["suite"]):
            attacks = _attacks(records, queries)
            moved = {c.name for one in attacks for c in moved_query.columns_of(type(one))}
            recalls = any(r["metric"] in moved for r in records if r["queries"] == queries)
            threat = session.dataset.protocol.threat
            planned += plan.planned_attacks(attacks, threat, whole_number(queries), recalls)
        cells += run(session, [weights], planned)
    return tidy(cells)


def _compared(wanted: Sequence[Record], measured: Sequence[Record]) -> list[Compared]:
    """Each number of the row with the one that was measured here."""
    found = {(cell_key(record), record["metric"]): record for record in measured}
    numbers = {}
    for row in rows(wanted):
        for heading, record in row.records.items():
            again = found.get((cell_key(record), record["metric"]))
            estimate = None
            if again is not None and again["status"] == "ok":
                estimate = Estimate(*(again[key] for key in ("value", "low", "high", "n")))
            numbers[record["suite"], record["queries"], heading] = Compared(
                heading,
                record["suite"],
                record["queries"],
                row.estimates[heading],
                estimate,
                again is None or again["versions"] == record["versions"],
            )
    return list(numbers.values())


def _by_attack_seed(records: Iterable[Record]) -> dict[int | None, list[Record]]:
    """The records by the seed of their attacks; None: that of the training, and clean images."""
    found: dict[int | None, list[Record]] = {}
    for record in records:
        found.setdefault(split_attack_seed(record["attack"])[1], []).append(record)
    return found


def _of_seed(one: Weights | Training, seed: int | None) -> Weights | Training:
    """The weights, attacked with another seed than that of their training; None: with that one."""
    if seed is None:
        return one
    if isinstance(one, Training):
        raise UserError(
            f"the attacks of the row have seed {seed}, the training has {one.seed}: train it first "
            "('dmlbench train'), and name its weights with --checkpoint"
        )
    return replace(one, seed=seed)


def _attacks(records: Iterable[Record], queries: str) -> list[Attack]:
    """The attacks of the rows with that number of queries; each once."""
    found: dict[tuple[str, str], Attack] = {}
    for record in records:
        if record["attack_resolved"] and record["queries"] == queries:
            attack = spec.parse(record["attack_resolved"], ATTACKS).in_suite(record["suite"])
            found.setdefault((record["attack_resolved"], record["suite"]), attack)
    return list(found.values())
