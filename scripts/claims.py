"""Differences of defenses in the papers' tables, held against the outcomes measured here.

Each is a statement that one model is above another one. A table gives the difference under each
suite with its 95% interval, over seeds and queries: ``python -m scripts.reading`` writes it.

``yes`` and ``no`` are said where the interval leaves out zero, and are printed bold where the
difference also holds beside all the other ones: by Holm's correction, the probability that one of
the bold verdicts is wrong is at most 5%. None is bold of fewer than ``LEAST_SEEDS`` shared seeds:
the interval of one covers the queries alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from dmlbench.core.protocol import SUITES
from dmlbench.metrics.bootstrap import LEVEL
from dmlbench.metrics.names import ERS
from dmlbench.report.entries import Entry
from dmlbench.report.literature import published
from scripts.order import LEAST_SEEDS, Difference, difference

ETA = 8  # of the published rows beside which a difference stands
PLACE = "CVPR 2022"
RECALL = "R@1"  # on clean images
RADIUS = "Radius"


@dataclass(frozen=True)
class Claim:
    """A statement: the model ``above`` is better than the model ``below``."""

    says: str
    above: str
    below: str
    metric: str = ERS


CLAIMS = (
    Claim("EST protects", "EST[R]", "N/A[R]"),
    Claim("ACT protects more than EST", "ACT[R]", "EST[R]"),
    Claim("ACT with random triplets protects more than with softhard ones", "ACT[R]", "ACT[S]"),
    Claim("HM from random triplets protects more than ACT", "HM[R,M]", "ACT[R]"),
    Claim("HM from random triplets protects more than from softhard ones", "HM[R,M]", "HM[S,M]"),
    Claim("HM protects more than ACT where both use softhard triplets", "HM[S,M]", "ACT[S]"),
    Claim("the gradual adversary protects more than a fixed one", "HM[S,g_LGA]", "HM[S,M]"),
    Claim("ICS adds to the gradual adversary", "HM[S,g_LGA]&ICS", "HM[S,g_LGA]"),
    Claim(
        "with the gradual adversary HM from softhard triplets is above ACT from random ones",
        "HM[S,g_LGA]",
        "ACT[R]",
    ),
    Claim("HM with the gradual adversary and ICS is above ACT", "HM[S,g_LGA]&ICS", "ACT[R]"),
    Claim("the gradual adversary adds to HM from random triplets too", "HM[R,g_LGA]", "HM[R,M]"),
    Claim("HM from random triplets is then above ACT", "HM[R,g_LGA]", "ACT[R]"),
    Claim("ICS adds to HM from random triplets too", "HM[R,g_LGA]&ICS", "HM[R,g_LGA]"),
)
RECALLS = (
    Claim("without a defense R@1 is higher than with HM", "N/A[R]", "HM[S,g_LGA]", RECALL),
    Claim("HM with the gradual adversary is above ACT", "HM[S,g_LGA]", "ACT[R]", RECALL),
    Claim(
        "HM with the gradual adversary is above HM from random triplets",
        "HM[S,g_LGA]",
        "HM[R,M]",
        RECALL,
    ),
)
RADII = (
    Claim("EST protects the top-1", "EST[R]", "N/A[R]", RADIUS),
    Claim("GOAT protects the top-1", "GOAT[R]", "N/A[R]", RADIUS),
    Claim("ACT protects the top-1", "ACT[R]", "N/A[R]", RADIUS),
    Claim("HM with the gradual adversary protects more than ACT", "HM[S,g_LGA]", "ACT[R]", RADIUS),
    Claim("HM with ICS protects more than ACT", "HM[S,g_LGA]&ICS", "ACT[R]", RADIUS),
    Claim(
        "HM with ICS protects more than HM from random triplets",
        "HM[S,g_LGA]&ICS",
        "HM[R,M]",
        RADIUS,
    ),
    Claim("the gradual adversary protects more than a fixed one", "HM[S,g_LGA]", "HM[S,M]", RADIUS),
    Claim(
        "the gradual adversary with ICS protects more than a fixed one",
        "HM[S,g_LGA]&ICS",
        "HM[S,M]",
        RADIUS,
    ),
    Claim("CA-TRIDE protects more than ACT", "CA-TRIDE", "ACT[R]", RADIUS),
    Claim("CA-TRIDE protects more than HM with ICS", "CA-TRIDE", "HM[S,g_LGA]&ICS", RADIUS),
)
NEWER = (
    Claim("CA-TRIDE is above HM with ICS", "CA-TRIDE", "HM[S,g_LGA]&ICS"),
    Claim("CA-TRIDE is above ACT", "CA-TRIDE", "ACT[R]"),
)
"""Comparisons of a later method, whose tables are in no source that could be read here."""
CHEAP = (
    Claim("EST (9) is above FAST (2)", "EST[R]", "FAST[R]"),
    Claim("HM from softhard triplets (9) is above FAST (2)", "HM[S,M]", "FAST[R]"),
    Claim("HM from random triplets (9) is above FAST (2)", "HM[R,M]", "FAST[R]"),
    Claim("ACT (9) is above FAST (2)", "ACT[R]", "FAST[R]"),
    Claim("FAST (2) is above FREE (1)", "FAST[R]", "FREE[R]"),
)
"""Comparisons of defenses that cost more passes with cheaper ones; passes in brackets."""

Lines = list[list[str]]


@dataclass(frozen=True)
class Measured:
    """The difference of a statement as measured here.

    Attributes:
        found: the difference; None where a model was not measured.
        seeds: that both models have.
        firm: true if it also holds with Holm's correction for the number of statements.
    """

    found: Difference | None
    seeds: int
    firm: bool = False

    def __str__(self) -> str:
        """``**yes** +2.1 [1.0, 3.3]``; with fewer than ``LEAST_SEEDS`` it says how many.

        The verdict is that of the interval as it is shown: its ends are drawn, and move by some
        hundredths with other draws.
        """
        if self.found is None:
            return "–"
        low, high = (round(end, 1) for end in (self.found.low, self.found.high))
        verdict = "yes" if low > 0 else "no" if high < 0 else "open"
        if self.firm and verdict != "open":
            verdict = f"**{verdict}**"
        alone = "" if self.seeds >= LEAST_SEEDS else f" ({self.seeds} seed{'s' * (self.seeds > 1)})"
        return f"{verdict} {self.found.mean:+.1f} [{low + 0:.1f}, {high + 0:.1f}]{alone}"


class Statements:
    """All statements of the page, with their differences.

    Args:
        outcomes: columns suite, metric, label, seed, query and value, as ``scripts.collect`` writes
            them.
    """

    def __init__(self, outcomes: pd.DataFrame) -> None:
        tables = by_model(outcomes)
        every = [(one, suite, False) for one in (*CLAIMS, *NEWER, *CHEAP) for suite in SUITES]
        every += [(one, "", False) for one in RECALLS]
        every += [(one, "auto", right) for one in RADII for right in (False, True)]
        found = {key: measured(tables, *key) for key in every}
        enough = {k: one.found for k, one in found.items() if one.seeds >= LEAST_SEEDS}
        firm = holm({key: one.p for key, one in enough.items() if one})
        self._measured = {k: replace(one, firm=k in firm) for k, one in found.items()}

    def claims(self, recall: bool = False) -> tuple[Sequence[str], Lines]:
        """Heads and lines of the papers' claims about ERS or R@1, with the published difference."""
        papers = {(e.label, e.eta): e for e in published() if e.place.startswith(PLACE) and _cub(e)}
        claims, suites = (RECALLS, ("",)) if recall else (CLAIMS, SUITES)
        lines = self._lines(claims, suites)
        for line, claim in zip(lines, claims, strict=True):
            line.insert(2, _published(papers, claim))
        heads = (suite or "here" for suite in suites)
        return ("statement", "difference", "published", *heads), lines

    def newer(self) -> tuple[Sequence[str], Lines]:
        """Heads and lines of the comparisons of later methods."""
        return ("statement", "difference", *SUITES), self._lines(NEWER, SUITES)

    def cheap(self) -> tuple[Sequence[str], Lines]:
        """Heads and lines of the comparisons by cost."""
        return ("statement", "difference", *SUITES), self._lines(CHEAP, SUITES)

    def radii(self) -> tuple[Sequence[str], Lines]:
        """Heads and lines of the claims about the radius, in 1/255.

        The first difference counts 0 where the clean top-1 is wrong; the second is over the queries
        whose clean top-1 is right with both models.
        """
        lines = self._lines(RADII, ("auto",))
        for line, claim in zip(lines, RADII, strict=True):
            line.append(str(self._measured[claim, "auto", True]))
        return ("statement", "difference", "all queries", "right with both"), lines

    def _lines(self, claims: Sequence[Claim], suites: Sequence[str]) -> Lines:
        """A line for each claim: its words, its models, and the difference under each suite."""
        return [
            [
                one.says,
                f"{one.above} − {one.below}",
                *(str(self._measured[one, suite, False]) for suite in suites),
            ]
            for one in claims
        ]


def holm(p: dict[tuple[Claim, str, bool], float]) -> set[tuple[Claim, str, bool]]:
    """The keys whose hypothesis is rejected by Holm's step-down procedure at 1 - ``LEVEL``."""
    rejected = set()
    for place, key in enumerate(sorted(p, key=lambda one: p[one])):
        if p[key] > (1 - LEVEL) / (len(p) - place):
            break
        rejected.add(key)
    return rejected


def _cub(entry: Entry) -> bool:
    return entry.dataset == "cub" and entry.distance == "N"


def _published(papers: dict[tuple[str, int | None], Entry], claim: Claim) -> str:
    """The difference of the published rows of CUB at the same eta; none has an interval."""
    values = []
    for label in (claim.above, claim.below):
        entry = papers.get((label, ETA)) or papers.get((label, None))
        if entry is None or claim.metric not in entry.numbers:
            return "–"
        values.append(entry.numbers[claim.metric].value)
    return f"{values[0] - values[1]:+.1f}"


Tables = dict[tuple[str, str, str], pd.DataFrame]
"""Metric, suite and label -> the outcomes of a model: one row per seed, one column per query."""


def by_model(outcomes: pd.DataFrame) -> Tables:
    """The table of each metric, suite and model; ``outcomes`` as in ``Statements``."""
    names = ["metric", "suite", "label"]
    kinds = outcomes.astype(dict.fromkeys(names, "category"))
    return {
        (str(metric), str(suite), str(label)): part.pivot(
            index="seed", columns="query", values="value"
        )
        for (metric, suite, label), part in kinds.groupby(names, observed=True)
    }


def measured(tables: Tables, claim: Claim, suite: str, right: bool = False) -> Measured:
    """The difference under a suite.

    ``right``: of the queries whose clean top-1 is right with both models.
    """
    both = (claim.above, claim.below)
    if any((claim.metric, suite, label) not in tables for label in both):
        return Measured(None, 0)
    above, below = (tables[claim.metric, suite, label] for label in both)
    seeds = above.index.intersection(below.index)
    if seeds.empty:
        return Measured(None, 0)
    found = above.loc[seeds] - below.loc[seeds]
    if right:
        clean = [tables[RECALL, "", label] for label in both]
        above_right, below_right = (one.loc[seeds, found.columns] == 100 for one in clean)
        found = found.where(above_right & below_right)
    values = np.asarray(found, dtype=np.float64)
    return Measured(difference(values, np.zeros_like(values)), len(seeds))
