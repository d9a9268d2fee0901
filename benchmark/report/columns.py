"""The columns of boards: their order, their meaning, and the direction that is better.

``better`` is always from the defender's side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from dmlbench.analysis.records import scores
from dmlbench.attacks import moved_query
from dmlbench.attacks.base import ATTACKS
from dmlbench.core.naming import by_number, split_heading
from dmlbench.metrics.ers import ERS_COLUMNS
from dmlbench.metrics.names import CLEAN, WORST

ARROW = {"higher": "↑", "lower": "↓", "": ""}


@dataclass(frozen=True)
class BoardColumn:
    """A column of a board.

    Attributes:
        name: the heading without the arrow: a metric, or one of ``DESCRIBING``.
        better: ``higher`` or ``lower``; empty for a column that is no metric.
        help: the meaning, in a sentence or two.
    """

    name: str
    better: str
    help: str

    @property
    def label(self) -> str:
        """The heading with its arrow, e.g. ``CA+ ↑``."""
        return f"{self.name} {ARROW[self.better]}".rstrip()


DESCRIBING = {
    "Rank": "By ERS as it is shown; equal scores share a rank. Collapsed and flagged models are "
    "not ranked, nor those without an ERS, which needs all ten columns and metric N.",
    "Defense": "The defense in the papers' notation.",
    "Model": "The network that embeds the images.",
    "Loss": "The loss of the training and its metric: N is the Euclidean distance of normalised "
    "embeddings, C is 1 - cosine, E is Euclidean and not normalised. ERS is defined for N.",
    "η": "PGD steps of adversarial training; a training step costs η + 1 passes.",
    "Recipe": "What differs from the data set's training recipe.",
    "Queries": "Test images that were attacked, drawn at random, where they are not all.",
    "Precision": "Of the network in evaluation, where it is not fp32.",
    "EoT": "Draws of a randomised network that gradients and outcomes are the means of "
    "(expectation over transformation).",
    "Source": "Measured here (n queries, the seeds of the models), or where it was published.",
}

_BENIGN_HELP = {
    "R@1": "Recall at 1: share of clean queries whose nearest item is of their class, in percent.",
    "R@2": "Recall at 2: one of the two nearest items is of the query's class, in percent.",
    "mAP": "Mean average precision over the whole ranking, in percent.",
    "mAP@R": "Mean average precision within the first R items, R the size of the query's class, "
    "in percent.",
    "mAP@10": "Mean average precision within the first 10 items, in percent.",
    "mAP-trapezoid": "Mean average precision as the landmark benchmarks (Oxford, Paris) compute "
    "it: the area under precision and recall by trapezoids, in percent.",
    "NMI": "Normalised mutual information of k-means clusters with the classes, in percent, of the "
    "start with the least inertia.",
}
_SCORES = {
    "ERS": "Empirical Robustness Score: the mean of ten terms, one an attack column, each from 0 "
    "(broken) to 100. An attack that does nothing leaves less than 100: the model's own mistakes "
    "count.",
    WORST: "Share of queries whose top-1 is right on the clean image and under each of ES, LTM and "
    "GTM (in suite auto under Top1 too), in percent.",
}


def column(name: str, better: str) -> BoardColumn:
    """The column of a metric; its heading may name a variant, as in ``CA+ (w=5)``."""
    metric, _ = split_heading(name)
    text = _benign_help(metric) or _SCORES.get(metric) or _attack_help().get(metric, "")
    keys = name.removeprefix(metric)[2:-1]
    return BoardColumn(name, better, f"With {keys}: {text}" if keys and text else text)


def _benign_help(name: str) -> str:
    """The meaning of a metric of clean images; empty if it is none."""
    if name in _BENIGN_HELP or not name.startswith("R@"):
        return _BENIGN_HELP.get(name, "")
    k = name.removeprefix("R@")
    return f"Recall at {k}: one of the {k} nearest items is of the query's class, in percent."


@cache
def _attack_help() -> dict[str, str]:
    found = {}
    for attack in ATTACKS:
        paper = f" ({attack.card.paper.short})" if attack.card.paper else ""
        for one in (*attack.headings(), *moved_query.columns_of(attack)):
            summary = attack.card.summary[:1].upper() + attack.card.summary[1:]
            found[one.name] = f"Attack: {summary}{paper}. {one.help}".rstrip()
    return found


def asked_for(name: str) -> bool:
    """True for a column of ``attacks.moved_query``, which tables show only where it is named."""
    bare, _ = split_heading(name)
    suffixes = tuple(column.name for column in moved_query.columns(""))
    return bare.endswith(suffixes) and bare not in directions()


@cache
def directions() -> dict[str, str]:
    """Heading -> ``higher`` or ``lower``, for clean metrics and every registered attack."""
    known = dict.fromkeys((*CLEAN, "ERS", WORST), "higher")
    return known | {c.name: c.better for attack in ATTACKS for c in attack.headings()}


@dataclass(frozen=True)
class Curve:
    """A column that is drawn as R@1 over something: the attack's name, and what it is over."""

    title: str
    over: str


@cache
def curves() -> dict[str, Curve]:
    """Heading -> its curve, of the registered attacks' columns that have one."""
    return {
        c.name: Curve(attack.card.name, c.curve)
        for attack in ATTACKS
        for c in attack.columns
        if c.curve
    }


@cache
def ranks() -> list[str]:
    """Headings of the registered attacks' columns that are percentile ranks, in order."""
    return in_order({c.name for attack in ATTACKS for c in attack.columns if c.rank})


def in_order(names: set[str]) -> list[str]:
    """Metrics in the papers' order: clean, the ten attack columns, others, then scores."""
    first = [name for name in (*CLEAN, *ERS_COLUMNS) if name in names]
    last = scores(names)
    return [*first, *sorted(names - {*first, *last}, key=by_number), *last]
