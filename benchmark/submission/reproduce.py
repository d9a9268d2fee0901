"""``dmlbench reproduce``: a row of a board or CSV, measured again and compared."""

from __future__ import annotations

import warnings
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msgspec import structs

from dmlbench.analysis import external
from dmlbench.analysis.csv_files import read_folder, read_tidy
from dmlbench.analysis.records import MODEL, ROW, Record, rows, tidy
from dmlbench.analysis.where import DIGESTS, Condition, choices, condition
from dmlbench.attacks import moved_query
from dmlbench.attacks.base import ATTACKS, Attack
from dmlbench.common.errors import UserError
from dmlbench.core import spec
from dmlbench.core.naming import at_other_radius, split_attack_seed, with_attack_seed
from dmlbench.core.protocol import ERS_ATTACKS, RECALL_ATTACKS
from dmlbench.core.spec import refuse_reference
from dmlbench.datasets.base import DATASETS, Dataset
from dmlbench.defenses.base import DEFENSES
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.metrics.names import ERS, WORST_CASE
from dmlbench.models.base import MODELS, parse_model
from dmlbench.storage.checkpoint import stored_weights
from dmlbench.sweep import plan
from dmlbench.sweep.requests import parse_recipe, whole_number
from dmlbench.sweep.run import run
from dmlbench.sweep.session import Session, open_session
from dmlbench.sweep.tasks import Weights
from dmlbench.sweep.weights import checkpoint_weights, initial_weights
from dmlbench.training.job import Training
from dmlbench.zoo.fetch import zoo_folder
from dmlbench.zoo.registry import card_of, models

WEIGHTS = (*MODEL, *DIGESTS)  # what rows of one model share
DIGITS = 12  # of a checkpoint's digest that a name must have at least
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
    wanted, left_out = _row(name, source, where)
    first = wanted[0]
    _check_scores(wanted)
    if not allow_code:
        _refuse_references(wanted)
    if not isinstance(dataset, Dataset):
        dataset = spec.parse(dataset or first["dataset"], DATASETS)
    options |= {"precision": first["precision"], "eot": whole_number(first["eot"]) or 1}
    with open_session(dataset, results, **options) as session:
        if session.digest != first["data"]:
            raise UserError(
                f"the images are not those of the row ({first['dataset']}, digest "
                f"{first['data'][:12]}): name the data set with --dataset"
            )
        one, how = _weights(session, first, checkpoint, retrain, allow_code)
        measured = _measured(session, one, wanted)
    digests = {record["checkpoint_sha256"] for record in measured}
    same = digests == {first["checkpoint_sha256"]}
    return Reproduction(first["label"], how, same, _compared(wanted, measured), left_out)


def _row(name: str, source: Path | None, where: Sequence[str]) -> tuple[list[Record], str]:
    """The records of one model that the name and the conditions choose, in the order of the files.

    Images from outside are left out, and Robust R@1 that includes them; the text says so.

    Raises:
        UserError: there is none, or there are several models.
    """
    conditions = [condition(text, (*ROW, *DIGESTS, "attack")) for text in where]
    if source is None and name in models():
        place = models()[name].rows
        every = read_tidy(place)
    else:
        place = source or Path("results")
        every = read_tidy(place) if place.is_file() else read_folder(place)
    wanted = models()[name].manifest.sha256 if name in models() else name

    def called(record: Record) -> bool:
        digest = record["checkpoint_sha256"]
        known = {record["defense"], record["label"], record["resolved"], digest}
        return wanted in known or (len(name) >= DIGITS and digest.startswith(name))

    mine = [record for record in every if called(record) and record["status"] == "ok"]
    mine = [record for record in mine if record["checkpoint_sha256"]]

    def meets(record: Record, some: Iterable[Condition]) -> bool:
        return all(one.meets(str(record[one.key])) for one in some)

    # clean numbers are of the row whatever is asked for of its attacks
    of_model = [one for one in conditions if one.key not in ("suite", "queries", "attack")]
    chosen = [
        record for record in mine if meets(record, conditions if record["suite"] else of_model)
    ]
    # the number of queries alone does not ask for clean numbers, which have none
    keys = {one.key for one in conditions}
    attacked = "queries" in keys and keys.isdisjoint(("suite", "attack"))
    asked = [record for record in chosen if record["suite"] or not attacked]
    if not any(meets(record, conditions) for record in asked):
        known = ", ".join(sorted({record["defense"] or record["label"] for record in every}))
        raise UserError(
            f"no measured row is {name!r}{''.join(f' with {one}' for one in where)} in {place}; "
            f"there is {known or 'nothing'}"
        )
    kinds = {tuple(record[key] for key in WEIGHTS) for record in chosen}
    if len(kinds) > 1:
        raise UserError(
            f"{name!r} is {len(kinds)} models in {place} ({choices(chosen, WEIGHTS)}): choose with "
            "--where"
        )
    return _without_outside(chosen, {_line(one) for one in mine if _is_external(one)})


def _without_outside(
    records: Sequence[Record], joined: Container[tuple[Any, ...]]
) -> tuple[list[Record], str]:
    """The records without those of images from outside, and what is left out; empty: nothing.

    Args:
        records: of one model.
        joined: the rows that such images are part of (``_line``).

    Raises:
        UserError: no record is left.
    """

    def includes(record: Record) -> bool:
        attack = record["attack"]
        worst = attack.partition(":")[0] == WORST_CASE and not at_other_radius(attack)
        return _is_external(record) or (worst and _line(record) in joined)

    kept = [record for record in records if not includes(record)]
    names = dict.fromkeys(record["metric"] for record in records if includes(record))
    if not names:
        return kept, ""
    left_out = f"{', '.join(names)} (with images from outside: 'dmlbench verify-attack')"
    if not kept:
        raise UserError(f"there is nothing to measure again but {left_out}")
    return kept, left_out


def _is_external(record: Record) -> bool:
    return external.read(record["attack_resolved"]) is not None


def _line(record: Record) -> tuple[Any, ...]:
    """The values that all records of one row of a table share."""
    return tuple(record[key] for key in (*WEIGHTS, "suite", "queries"))


def _check_scores(records: Iterable[Record]) -> None:
    """UserError if a score is among the records, but an attack that it is drawn from is not."""
    attacks = {_key(record) for record in records if record["attack_resolved"]}
    for record in records:
        attack, seed = split_attack_seed(record["attack"])
        score, _, changed = attack.partition(":")
        if not score or record["attack_resolved"]:
            continue
        needed = ERS_ATTACKS if score == ERS else RECALL_ATTACKS[record["suite"]]
        radius = f":{changed}" if at_other_radius(attack) else ""
        names = [name + radius for name in needed]
        if seed is not None:
            names = [with_attack_seed(name, seed) for name in names]
        if any((record["suite"], record["queries"], one) not in attacks for one in names):
            chosen = "|".join((record["attack"], *names))
            raise UserError(
                f"{record['attack']} is drawn from {', '.join(names)}, and not all of them are "
                f"among the rows that are measured again: choose them too, --where "
                f"'attack={chosen}'"
            )


def _refuse_references(records: Iterable[Record]) -> None:
    """UserError if a spec of a row names code, which would be run."""
    for record in records:
        refuse_reference(record["attack_resolved"], ATTACKS, "the row")
        refuse_reference(record["dataset"], DATASETS, "the row")
        refuse_reference(record["model"], MODELS, "the row")
        refuse_reference(record["resolved"], DEFENSES, "the row")


def _weights(
    session: Session, row: Record, checkpoint: Path | None, retrain: bool, allow_code: bool
) -> tuple[Weights | Training, str]:
    """The weights of a row, or the training that gives them; and where they come from."""
    card = card_of(row["checkpoint_sha256"])
    if checkpoint is None and not retrain and card is not None:
        checkpoint = zoo_folder(card.name)
        how = f"the zoo's {card.name}"
    else:
        how = f"{checkpoint}"
    seed = row["seed"]
    if checkpoint is not None and not retrain:
        described = stored_weights(checkpoint).manifest is not None
        network = None if described else parse_model(row["model"])
        found = checkpoint_weights(
            *(session.dataset, session.digest, network, checkpoint, row["label"], seed),
            *(session.compute.precision, session.compute.eot),
            allow_code=allow_code,
        )
        if found.facts["checkpoint"] != row["checkpoint_sha256"]:
            raise UserError(
                f"{checkpoint} holds other weights than the row (SHA-256 "
                f"{row['checkpoint_sha256'][:DIGITS]}...)"
            )
        return _in_row(found, row), how
    if not row["resolved"]:
        return _as_built(session, row), f"built by {row['model']}"
    try:
        defense = spec.parse(row["resolved"], DEFENSES)
    except UserError as error:
        raise UserError(
            f"{error} (a defense of a file is not in the row: name the weights with --checkpoint)"
        ) from None
    (training,) = plan.plan(
        session.dataset,
        session.digest,
        parse_model(row["model"]),
        [defense],
        [seed],
        parse_recipe(session.dataset, row["recipe"]),
    )
    trained = session.store.model_folder(training.id)
    return training, f"trained by the row's recipe, in {trained}"


def _in_row(weights: Weights, row: Record) -> Weights:
    """The weights with the seed of their row: early ones have that of the attacks there."""
    return replace(weights, about=structs.replace(weights.about, seed=row["seed"]))


def _as_built(session: Session, row: Record) -> Weights:
    """The weights of a network that was measured as it is published, or as its code builds it.

    Raises:
        UserError: the row is of other weights, of which it does not say how they were trained.
    """
    model, measured = parse_model(row["model"]), (session.compute.precision, session.compute.eot)
    known = (session.dataset, session.data, model, row["label"], row["seed"], *measured)
    try:
        with warnings.catch_warnings(action="ignore"):  # of random weights
            found = initial_weights(*known)
    except UserError as error:
        reason = f", and {error}"
    else:
        if found.facts["checkpoint"] == row["checkpoint_sha256"]:
            return _in_row(found, row)
        reason = f", and {row['model']} builds other weights or attributes"
    raise UserError(
        f"the row of {row['label']} does not say how it was trained{reason}: name its weights with "
        "--checkpoint"
    )


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
    found = {(_key(record), record["metric"]): record for record in measured}
    numbers = {}
    for row in rows(wanted):
        for heading, record in row.records.items():
            again = found.get((_key(record), record["metric"]))
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


def _key(record: Record) -> tuple[str, ...]:
    """The columns by which the cells of one model differ in a CSV."""
    return tuple(str(record[key]) for key in ("suite", "queries", "attack"))
