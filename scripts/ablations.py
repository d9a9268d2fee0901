"""The tables of HM's paper on fashion-mini, beside the published figures of CUB.

    dmlbench run --config results/paper/table-2.yaml --dataset fashion-mini --queries 500
    python -m scripts.ablations RESULTS results/paper/fashion-mini.csv

The second line collects what runs like the first have measured, of the rows of all tables under the
suite ``ers``. ``python -m scripts.reading`` writes the tables of results/paper/README.md from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import click
import yaml

from dmlbench.analysis import csv_files, records
from dmlbench.analysis.csv_files import read_tidy
from dmlbench.core.naming import parameters
from dmlbench.datasets.base import DATASETS
from dmlbench.defenses.base import DEFENSES
from dmlbench.models.base import parse_model
from dmlbench.report.entries import Entry, measured
from dmlbench.report.literature import published
from dmlbench.storage.store import Store
from dmlbench.sweep import plan
from dmlbench.sweep.requests import parse_all
from dmlbench.training.job import Training

FOLDER = Path(__file__).parent.parent / "results" / "paper"
TABLES = ("3", "4", "5", "7", "9", "10")  # Table 2 is a square, and 6 is the page of all results
DATASET, SUITE = "fashion-mini", "ers"
SEED = 0  # of all rows: means over several would stand beside single trainings
SYMBOLS = {"xi": "ξ", "ics": "λ", "u": "u", "ics_margin": "margin"}
INITIALS = "RMSDH"  # random, semihard, softhard, distance-weighted, hardest
Key = tuple[str, int | None]


@cache
def trainings(table: str) -> list[Training]:
    """The rows of a table of the paper, as trainings on fashion-mini with one seed."""
    card = DATASETS.get(DATASET)().protocol
    asked = yaml.safe_load((FOLDER / f"table-{table}.yaml").read_text(encoding="utf-8"))
    defenses = parse_all(asked["defense"], DEFENSES)
    network = parse_model(card.model)
    return plan.plan(DATASETS.get(DATASET)(), "", network, defenses, [SEED], card.recipe)


@click.command()
@click.argument("source", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
def collect(source: Path, target: Path) -> None:
    """Write the rows of all tables that the results folder SOURCE has into the CSV TARGET."""
    wanted = {one.spelling for table in ("2", *TABLES) for one in trainings(table)}
    cells = [c for c in Store(source).cells() if c.about.suite in ("", SUITE)]
    cells = [c for c in cells if c.about.seed == SEED]
    found = [c for c in cells if c.about.dataset == DATASET and c.about.defense in wanted]
    attacked = {c.about.defense for c in found if "ERS" in c.metrics}
    attacked |= {c.about.defense for c in found if c.findings.get("collapsed")}
    kept = [c for c in found if c.about.defense in attacked]
    if not kept:
        raise click.ClickException(f"{source} has no row of a table, so nothing is written")
    csv_files.write(target, records.TIDY_COLUMNS, records.tidy(kept))
    print(f"{len(attacked)} models")


@cache
def here(path: Path) -> dict[str, Entry]:
    """Spec of a defense -> what was measured of it."""
    entries = [entry for entry in measured(read_tidy(path)) if entry.suite == SUITE]
    found = {entry.defense: entry for entry in entries}
    if len(found) < len(entries):
        raise ValueError(f"{path} has two entries of one defense")
    return found


@cache
def there() -> dict[Key, Entry]:
    """Label, with what stands in brackets behind it, and eta -> the published row of CUB."""
    rows = [e for e in published() if e.dataset == "cub" and e.place.startswith("CVPR")]
    return {(e.label, e.eta): e for e in rows if e.distance == "N"}


def key(training: Training) -> Key:
    """The name of the row of a training in the paper."""
    label, cost = training.defense.label, training.defense.training_cost
    label = label.replace("-0.1]", "−γ/2]").replace("-0.2]", "−γ]")
    for name, value in parameters(training.spelling).items():
        if name in SYMBOLS and float(value):
            shown = f"{float(value):.1f}" if name == "ics" else value
            label += f" ({SYMBOLS[name]}={shown})"
    return label, cost - 1 if cost > 1 else None


def lines(table: str, path: Path) -> Iterator[Sequence[str]]:
    """One line per row of the paper's table, in its order."""
    for training in trainings(table):
        label, eta = key(training)
        ours, theirs = here(path).get(training.spelling), there().get((label, eta))
        shown = [_number(e, name) for name in ("R@1", "ERS") for e in (ours, theirs)]
        yield (label, "–" if eta is None else str(eta), *shown)


HEADS = ("defense", "η", "R@1", "R@1, paper", "ERS", "ERS, paper")


def square(path: Path) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Table 2: a line for each source hardness, a column for each destination; ERS here / there."""
    cells = {}
    for training in trainings("2"):
        label, eta = key(training)
        match = re.fullmatch(r"HM\[(.),(.)\]", label)
        assert match is not None
        ours, theirs = here(path).get(training.spelling), there().get((label, eta))
        cells[match.groups()] = f"{_number(ours, 'ERS')} / {_number(theirs, 'ERS')}"
    found = [(one, *(cells[one, other] for other in INITIALS)) for one in INITIALS]
    return ("source \\ destination", *INITIALS), found


def _number(entry: Entry | None, name: str) -> str:
    if entry is None:
        return "–"
    if entry.collapsed:
        return "collapsed"
    number = entry.numbers.get(name)
    return f"{number.text} {number.range}".strip() if number else "–"


if __name__ == "__main__":
    collect()
