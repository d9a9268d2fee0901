"""The tables of results/README.md, from the committed CSVs: ``python -m benchmarks.reading``.

Printed as Markdown; a test holds the README against it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from dmlbench.metrics.ers import ERS_COLUMNS
from dmlbench.report.entries import Entry, measured, published
from dmlbench.report.results import read_tidy

RESULTS = Path(__file__).parent.parent / "results"
BASE = ("R@1", "mAP", "NMI")
Lines = Iterable[Sequence[str]]


def markdown(heads: Sequence[str], lines: Lines) -> str:
    """A table."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def found(entries: Iterable[Entry], suite: str) -> dict[str, Entry]:
    """Ours of a suite, by the defense's notation."""
    return {entry.label: entry for entry in entries if entry.suite == suite}


def text(entry: Entry, column: str) -> str:
    """A number as the boards round it."""
    return entry.numbers[column].text if column in entry.numbers else "–"


def defenses(strict: dict[str, Entry], ers: dict[str, Entry]) -> str:
    """What each defense is worth, and what the suites make of it."""
    heads = ("defense", "R@1", "ERS strict", "ERS ers", "ES:D", "TMA", "GTM strict", "GTM ers")
    heads += ("Robust R@1",)
    lines = []
    for label, one in strict.items():
        other = ers[label]
        lines.append(
            (
                label,
                text(one, "R@1"),
                text(one, "ERS"),
                text(other, "ERS"),
                *(text(one, name) for name in ("ES:D", "TMA")),
                text(one, "GTM"),
                text(other, "GTM"),
                text(one, "Robust R@1"),
            )
        )
    return markdown(heads, lines)


def documented(ers: dict[str, Entry]) -> str:
    """Our ``ers`` columns beside those of RobRank's documentation: ours / theirs."""
    theirs = {
        entry.label: entry
        for entry in published()
        if entry.dataset == "fashion" and entry.distance == "N"
    }
    names = (*BASE, *ERS_COLUMNS, "ERS")
    lines = [
        (label, *(f"{text(ers[label], name)} / {text(entry, name)}" for name in names))
        for label, entry in theirs.items()
        if label in ers
    ]
    return markdown(("ours / documented", *names), lines)


def table(path: Path, dropped: Sequence[str] = ()) -> str:
    """A CSV of measured times, but for what its text says."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    heads = [name for name in rows[0] if name not in dropped]
    return markdown(heads, [[row[name] for name in heads] for row in rows])


def blocks() -> dict[str, str]:
    """Every table, by its name."""
    entries = measured(read_tidy(RESULTS / "fashion.csv"))
    strict, ers = found(entries, "strict"), found(entries, "ers")
    made = ("device", "threads", "git", "torch", "model", "size", "batch", "gallery", "pairs")
    made += ("queries", "checkpoint")
    speeds = {
        name: table(RESULTS / "speed" / f"{name}.csv", made)
        for name in ("attacks", "peer", "training")
    }
    return {"defenses": defenses(strict, ers), "documented": documented(ers), **speeds}


if __name__ == "__main__":
    print("\n\n".join(blocks().values()))
