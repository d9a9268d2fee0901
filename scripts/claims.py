"""Differences of defenses in the papers' tables, held against the outcomes measured here.

Each is a statement that one model is above another one. A table gives the difference under each
suite with its 95% interval, over seeds and queries: ``python -m scripts.reading`` writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dmlbench.analysis.order import Difference, difference
from dmlbench.core.protocol import SUITES
from dmlbench.metrics.names import ERS
from dmlbench.report.entries import Entry
from dmlbench.report.literature import published

ETA = 8  # of the published rows beside which a difference stands
PLACE = "CVPR 2022"
RECALL = "R@1"  # on clean images
RADIUS = "Radius"
SUITES_OF = {ERS: SUITES, RECALL: ("",), RADIUS: ("auto",)}


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
    Claim("ICS adds to it", "HM[S,g_LGA]&ICS", "HM[S,g_LGA]"),
    Claim("with the gradual adversary HM is above ACT", "HM[S,g_LGA]", "ACT[R]"),
    Claim("with ICS too HM is above ACT", "HM[S,g_LGA]&ICS", "ACT[R]"),
    Claim("without a defense R@1 is higher than with HM", "N/A[R]", "HM[S,g_LGA]", RECALL),
    Claim("HM with the gradual adversary is above ACT", "HM[S,g_LGA]", "ACT[R]", RECALL),
    Claim("and above HM from random triplets", "HM[S,g_LGA]", "HM[R,M]", RECALL),
    Claim("ACT protects the top-1", "ACT[R]", "N/A[R]", RADIUS),
    Claim("HM with the gradual adversary protects it more", "HM[S,g_LGA]", "ACT[R]", RADIUS),
    Claim("with ICS too", "HM[S,g_LGA]&ICS", "ACT[R]", RADIUS),
    Claim("and more than HM from random triplets", "HM[S,g_LGA]&ICS", "HM[R,M]", RADIUS),
    Claim("CA-TRIDE protects it more than ACT", "CA-TRIDE", "ACT[R]", RADIUS),
    Claim("and more than HM with ICS", "CA-TRIDE", "HM[S,g_LGA]&ICS", RADIUS),
)
NEWER = (
    Claim("CA-TRIDE is above HM with ICS", "CA-TRIDE", "HM[S,g_LGA]&ICS"),
    Claim("and above ACT", "CA-TRIDE", "ACT[R]"),
)
"""Comparisons of a later method, whose tables are in no source that could be read here."""


Lines = list[list[str]]


def table(outcomes: pd.DataFrame, metric: str) -> tuple[Sequence[str], Lines]:
    """Heads and lines: each claim about ``metric``, the published difference, those measured here.

    ``yes`` and ``no`` are said where the interval leaves out zero.
    """
    papers = {(e.label, e.eta): e for e in published() if e.place.startswith(PLACE) and _cub(e)}
    claims = [one for one in CLAIMS if one.metric == metric]
    lines = _lines(outcomes, claims)
    for line, claim in zip(lines, claims, strict=True):
        line.insert(2, _published(papers, claim))
    suites = (suite or "here" for suite in SUITES_OF[metric])
    return ("statement", "difference", "published", *suites), lines


def newer(outcomes: pd.DataFrame) -> tuple[Sequence[str], Lines]:
    """Heads and lines of the comparisons of later methods."""
    return ("statement", "difference", *SUITES), _lines(outcomes, NEWER)


def radii(outcomes: pd.DataFrame) -> tuple[Sequence[str], Lines]:
    """Heads and lines of the claims about the radius, in 1/255.

    The first difference counts 0 where the clean top-1 is wrong; the second is over the queries
    whose clean top-1 is right with both models.
    """
    claims = [one for one in CLAIMS if one.metric == RADIUS]
    lines = _lines(outcomes, claims)
    for line, claim in zip(lines, claims, strict=True):
        line.append(difference_of(outcomes, claim, "auto", right=True))
    return ("statement", "difference", "all queries", "right with both"), lines


def _lines(outcomes: pd.DataFrame, claims: Sequence[Claim]) -> Lines:
    """A line for each claim: its words, its models, and the difference under each suite."""
    return [
        [
            one.says,
            f"{one.above} − {one.below}",
            *(difference_of(outcomes, one, suite) for suite in SUITES_OF[one.metric]),
        ]
        for one in claims
    ]


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


def difference_of(outcomes: pd.DataFrame, claim: Claim, suite: str, right: bool = False) -> str:
    """The difference under a suite, in words; a dash where a model was not measured.

    ``right``: of the queries whose clean top-1 is right with both models.
    """
    above, below = (_values(outcomes, claim.metric, suite, x) for x in (claim.above, claim.below))
    seeds = above.index.intersection(below.index)
    if seeds.empty:
        return "–"
    found = above.loc[seeds] - below.loc[seeds]
    if right:
        clean = [_values(outcomes, RECALL, "", x) for x in (claim.above, claim.below)]
        above_right, below_right = (one.loc[seeds, found.columns] == 100 for one in clean)
        found = found.where(above_right & below_right)
    values = np.asarray(found, dtype=np.float64)
    return said(difference(values, np.zeros_like(values)), len(seeds))


def _values(outcomes: pd.DataFrame, metric: str, suite: str, label: str) -> pd.DataFrame:
    """The outcomes of a model: one row per seed, one column per query."""
    part = outcomes[(outcomes["metric"] == metric) & (outcomes["suite"] == suite)]
    part = part[part["label"] == label]
    return part.pivot(index="seed", columns="query", values="value")


def said(found: Difference, seeds: int) -> str:
    """``yes +2.1 [1.0, 3.3]``; with one seed the interval is over queries alone."""
    verdict = "yes" if found.low > 0 else "no" if found.high < 0 else "open"
    alone = "" if seeds > 2 else f" ({seeds} seed{'s' * (seeds > 1)})"
    return f"**{verdict}** {found.mean:+.1f} [{found.low:.1f}, {found.high:.1f}]{alone}"
