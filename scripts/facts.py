"""Check findings of the papers on fashion-mini: ``python -m scripts.facts [--results DIR]``.

The script trains and attacks the models by the command line, which takes about ten minutes on two
cores. It prints each finding with its numbers. The exit code is 1 if a finding does not hold.
Stored results are used again, so the folder must hold results of this script alone.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click

from dmlbench.analysis.compare import Difference, compare, find
from dmlbench.analysis.records import Row, wide
from dmlbench.storage.store import Store

ZERO_HARDNESS = "hm:destination=constant,ics=0"  # HM[S,0]: the level is 0 unless it is given
EQUAL_PAIR = ("none:sampler=semihard", "hm:source=semihard,destination=semihard,ics=0")  # HM[M,M]
RUNS = (
    (("none", "est", "act", "hm"), ("--suite", "strict")),
    (("hm:ics=0", ZERO_HARDNESS, *EQUAL_PAIR), ("--attack", "es")),
)


class Findings:
    """The results in a folder, by the spec of the defense."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.rows = {row.about["defense"]: row for row in wide(self.store.cells())}

    def row(self, defense: str) -> Row:
        """Return all results of a defense."""
        return self.rows[defense]

    def ers(self, defense: str) -> float:
        """Return the Empirical Robustness Score of a defense."""
        return self.row(defense).estimates["ERS"].value

    def difference(self, a: str, b: str, metric: str) -> Difference:
        """Return the difference b - a of a metric, paired by query."""
        found = compare(find(a, self.store, None), find(b, self.store, None))
        return next(one for one in found if one.metric == metric)

    def weights(self, defense: str) -> str:
        """Return the SHA-256 of the checkpoint of a defense."""
        cell = next(c for c in self.store.cells() if c.about.defense == defense)
        return str(cell.facts["checkpoint"])


Fact = Callable[[Findings], tuple[bool, str]]


def robustness_order(f: Findings) -> tuple[bool, str]:
    """ERS: none << EST < ACT (RobRank)."""
    none, est, act, hm = (f.ers(name) for name in ("none", "est", "act", "hm"))
    text = f"none {none:.1f}, EST {est:.1f}, ACT {act:.1f}; HM[S,g_LGA]&ICS {hm:.1f}"
    return none + 5 < est < act, text


def recall_is_kept(f: Findings) -> tuple[bool, str]:
    """HM[S,g_LGA] keeps a higher R@1 than ACT[R] at the same eta (HM)."""
    one = f.difference("act", "hm:ics=0", "R@1")
    return one.favours == "B", _numbers(one)


def ics_holds_embeddings(f: Findings) -> tuple[bool, str]:
    """ICS lowers ES:D (HM)."""
    one = f.difference("hm:ics=0", "hm", "ES:D")
    return one.favours == "B", _numbers(one)


def too_hard_collapses(f: Findings) -> tuple[bool, str]:
    """HM[S,0] collapses, and the row says so (HM)."""
    row = f.row(ZERO_HARDNESS)
    return row.collapsed is True, f"R@1 {row.estimates['R@1'].value:.1f}, collapsed {row.collapsed}"


def nothing_to_manipulate(f: Findings) -> tuple[bool, str]:
    """HM[M,M] is plain training on semihard triplets, to the bit of the weights (HM)."""
    a, b = (f.weights(name) for name in EQUAL_PAIR)
    return a == b, f"SHA-256 {a[:12]} and {b[:12]}"


def _numbers(one: Difference) -> str:
    d = one.difference
    return f"{one.a:.3f} -> {one.b:.3f}: {d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}], n {d.n}"


FACTS: tuple[Fact, ...] = (
    robustness_order,
    recall_is_kept,
    ics_holds_embeddings,
    too_hard_collapses,
    nothing_to_manipulate,
)


@click.command()
@click.option(
    "--results", type=click.Path(path_type=Path), default="build/facts", show_default=True
)
def main(results: Path) -> None:
    """Train, attack, and compare the numbers with the findings of the papers."""
    for defenses, attacks in RUNS:
        chosen = [part for name in defenses for part in ("--defense", name)]
        places = ["--results", str(results), "--leaderboards", str(results)]
        command = [sys.executable, "-m", "dmlbench", "run", *chosen, *attacks, *places]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    findings, failed = Findings(results), False
    for fact in FACTS:
        holds, numbers = fact(findings)
        failed |= not holds
        click.echo(f"{'holds' if holds else 'FAILS'}  {fact.__doc__}\n       {numbers}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
