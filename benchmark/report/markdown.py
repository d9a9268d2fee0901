"""The Markdown board of a data set."""

from __future__ import annotations

from collections.abc import Sequence

from dmlbench.datasets.base import DatasetCard
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.recipe import Threat
from dmlbench.tables import BENIGN, Row, headings

ARROW = {"higher": "↑", "lower": "↓"}
SKIPPED = ("mAP@10",)  # in the CSV; the papers' tables do not show it


def board(card: DatasetCard, rows: Sequence[Row]) -> str:
    """One table a network, recipe and suite, with the protocol below them and the legend."""
    lines = [f"# {card.name}", "", card.summary + ".", ""]
    for title, group in groups(rows):
        titles, *body = grid(group)
        rule = ["---"] + ["---:"] * (len(titles) - 1)
        lines += [f"## {title}", "", *map(_line, [titles, rule, *body]), ""]
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


def groups(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Rows that can be compared with each other, under a title that says what they share."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        about = row.about
        parts = [about["dataset"], about["model"]]
        parts += [f"recipe {about['recipe']}"] if about["recipe"] else []
        parts += [about["precision"]] if about["precision"] != "fp32" else []
        parts += [f"suite {about['suite']}"] if about["suite"] else []
        found.setdefault(", ".join(parts), []).append(row)
    return list(found.items())


def grid(rows: Sequence[Row]) -> list[list[str]]:
    """Titles, then the cells of each row, as text. A column that would be empty is left out."""
    names = [name for name in headings(rows) if name not in SKIPPED]
    better = {name: word for row in rows for name, word in row.better.items()}
    has_ers = any(row.ers is not None for row in rows)
    has_seeds = len({row.about["seed"] for row in rows}) > 1
    titles = ["Defense", *["Seed"] * has_seeds, "Cost"]
    titles += [f"{name} {ARROW[better[name]]}" for name in names]
    lines = [titles + ["ERS ↑"] * has_ers]
    for row in rows:
        cells = [name_of(row), *[str(row.about["seed"])] * has_seeds]
        cells += [str(row.about["training_cost"]), *(show(name, row) for name in names)]
        ers = "-" if row.ers is None else f"{row.ers:.1f}"
        lines.append(cells + [ers] * has_ers)
    return lines


def name_of(row: Row) -> str:
    """The defense in the papers' notation, its spec where that says more, and the mark of a
    collapsed model.
    """
    label, spelt = row.about["label"], row.about["defense"]
    detail = f" ({spelt})" if ":" in spelt else ""
    return f"{label}{detail}{' †' if row.collapsed else ''}"


def show(name: str, row: Row) -> str:
    """A number as the papers round it; ``failed`` or a dash where there is none."""
    estimate = row.estimates.get(name)
    if estimate is None:
        return "failed" if name in row.failed or "training" in row.failed else "-"
    return number(estimate, interval=name not in BENIGN, digits=row.digits.get(name, 1))


def number(estimate: Estimate, interval: bool, digits: int) -> str:
    """``18.3`` or ``18.3 [17.0, 19.6]``; a similarity or distance, ``0.883``."""
    if not interval or estimate.low is None or estimate.high is None:
        return f"{estimate.value:.{digits}f}"
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def _threat(threat: Threat) -> str:
    return (
        f"Attacks: white-box PGD, L∞ radius {threat.eps * 255:g}/255, {threat.steps} steps of "
        f"{threat.alpha * 255:g}/255."
    )


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_escape, cells)) + " |"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
