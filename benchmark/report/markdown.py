"""The Markdown board of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from dmlbench.datasets.base import DatasetCard
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.recipe import Threat
from dmlbench.tables import BENIGN, Row, headings

ARROW = {"higher": "↑", "lower": "↓"}
SKIPPED = ("mAP@10",)  # in the CSV; the papers' tables do not show it


def board(card: DatasetCard, rows: Sequence[Row]) -> str:
    """One table a network and suite, with the protocol above it and the legend below."""
    lines = [f"# {card.name}", "", card.summary + ".", ""]
    for (model, recipe, suite), group in groupby(
        rows, key=lambda row: tuple(row.about[key] for key in ("model", "recipe", "suite"))
    ):
        title = f"`{model}`" + (f", recipe `{recipe}`" if recipe else "")
        lines += [f"## {title}, suite `{suite}`", "", *table(list(group)), ""]
    lines += [_threat(card.threat)]
    if card.note:
        lines += ["", f"Recipe of this data set: {card.note}."]
    lines += ["", LEGEND]
    return "\n".join(lines) + "\n"


LEGEND = (
    "Arrows show the better direction for the defender. R@K, mAP, NMI and ranks are in percent; "
    "a rank of 50 is an untouched CA+ candidate. Attack columns give the mean over queries and "
    "its 95% bootstrap interval. Cost is forward-backward passes a training step (η + 1). "
    "† marks a collapsed model, which is not to be compared. "
    "Measured by dmlbench on this machine; not the papers' numbers."
)


def table(rows: Sequence[Row]) -> list[str]:
    """The lines of a Markdown table, a row a model."""
    names = [name for name in headings(rows) if name not in SKIPPED]
    better = {name: word for row in rows for name, word in row.better.items()}
    has_ers = any(row.ers is not None for row in rows)
    titles = ["Defense", "Cost", "Seed"]
    titles += [f"{name} {ARROW[better[name]]}" for name in names] + ["ERS ↑"] * has_ers
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1)]
    for row in rows:
        cells = [name_of(row), str(row.about["training_cost"]), str(row.about["seed"])]
        cells += [show(name, row) for name in names]
        cells += ["" if row.ers is None else f"{row.ers:.1f}"] * has_ers
        lines.append(cells)
    return ["| " + " | ".join(_escape(cell) for cell in line) + " |" for line in lines]


def name_of(row: Row) -> str:
    """The defense in the papers' notation, its spec where that says more, and the mark of a
    collapsed model.
    """
    label, spelt = row.about["label"], row.about["defense"]
    detail = f" `{spelt}`" if ":" in spelt else ""
    return f"{label}{detail}{' †' if row.collapsed else ''}"


def show(name: str, row: Row) -> str:
    """A number as the papers round it; ``failed`` or a dash where there is none."""
    estimate = row.estimates.get(name)
    if estimate is None:
        failed = any(name.lower().startswith(attack.partition(":")[0]) for attack in row.failed)
        return "failed" if failed else "-"
    return number(estimate, interval=name not in BENIGN)


def number(estimate: Estimate, interval: bool) -> str:
    """``18.3`` or ``18.3 [17.0, 19.6]``."""
    if not interval or estimate.low is None or estimate.high is None:
        return f"{estimate.value:.1f}"
    return f"{estimate.value:.1f} [{estimate.low:.1f}, {estimate.high:.1f}]"


def _threat(threat: Threat) -> str:
    return (
        f"Attacks: white-box PGD, L∞ radius {threat.eps * 255:g}/255, {threat.steps} steps of "
        f"{threat.alpha * 255:g}/255."
    )


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
