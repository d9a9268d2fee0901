"""The row of a board or CSV that is to be measured again."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

from dmlbench.analysis import external
from dmlbench.analysis.csv_files import read_folder, read_tidy
from dmlbench.analysis.lookup import names_weights
from dmlbench.analysis.records import MODEL, ROW, Record
from dmlbench.analysis.where import DIGESTS, Condition, choices, condition
from dmlbench.attacks.base import ATTACKS
from dmlbench.common.errors import UserError
from dmlbench.core.naming import at_other_radius, split_attack_seed, with_attack_seed
from dmlbench.core.protocol import ERS_ATTACKS, RECALL_ATTACKS
from dmlbench.core.spec import refuse_reference
from dmlbench.datasets.base import DATASETS
from dmlbench.defenses.base import DEFENSES
from dmlbench.metrics.names import ERS, WORST_CASE
from dmlbench.models.base import MODELS
from dmlbench.zoo.registry import models

WEIGHTS = (*MODEL, *DIGESTS)  # what rows of one model share


def chosen_row(name: str, source: Path | None, where: Sequence[str]) -> tuple[list[Record], str]:
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
        if source is not None and not source.exists():
            raise UserError(f"--from {source} does not exist")
        every = read_tidy(place) if place.is_file() else read_folder(place)
    wanted = models()[name].manifest.sha256 if name in models() else name

    def called(record: Record) -> bool:
        known = {record["defense"], record["label"], record["resolved"]}
        return wanted in known or names_weights(wanted, record["checkpoint_sha256"])

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
    return _without_outside(chosen, {line(one) for one in mine if _is_external(one)})


def _without_outside(
    records: Sequence[Record], joined: Container[tuple[Any, ...]]
) -> tuple[list[Record], str]:
    """The records without those of images from outside, and what is left out; empty: nothing.

    Args:
        records: of one model.
        joined: the rows that such images are part of (``line``).

    Raises:
        UserError: no record is left.
    """

    def includes(record: Record) -> bool:
        attack = record["attack"]
        worst = attack.partition(":")[0] == WORST_CASE and not at_other_radius(attack)
        return _is_external(record) or (worst and line(record) in joined)

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


def line(record: Record) -> tuple[Any, ...]:
    """The values that all records of one row of a table share."""
    return tuple(record[key] for key in (*WEIGHTS, "suite", "queries"))


def check_scores(records: Iterable[Record]) -> None:
    """UserError if a score is among the records, but an attack that it is drawn from is not."""
    attacks = {cell_key(record) for record in records if record["attack_resolved"]}
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


def refuse_references(records: Iterable[Record]) -> None:
    """UserError if a spec of a row names code, which would be run."""
    for record in records:
        refuse_reference(record["attack_resolved"], ATTACKS, "the row")
        refuse_reference(record["dataset"], DATASETS, "the row")
        refuse_reference(record["model"], MODELS, "the row")
        refuse_reference(record["resolved"], DEFENSES, "the row")


def cell_key(record: Record) -> tuple[str, ...]:
    """The columns by which the cells of one model differ in a CSV."""
    return tuple(str(record[key]) for key in ("suite", "queries", "attack"))
