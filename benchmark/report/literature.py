"""The entries of the literature: the rows of ``published.csv``."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources

from dmlbench.core.papers import HM, ROBRANK, Paper
from dmlbench.metrics.ers import ERS_COLUMNS, ers
from dmlbench.metrics.names import BENIGN
from dmlbench.report.columns import directions
from dmlbench.report.entries import Entry, Number

PUBLISHED_BENIGN = tuple(name for name in BENIGN if not name.startswith("mAP@"))
DOCUMENTATION = "https://github.com/cdluminate/robrank/blob/main/doc/dmltab-{}.txt"


def published() -> list[Entry]:
    """The entries of the literature, in the order of ``published.csv``.

    ERS is as printed; if a paper prints none, it is computed from its ten columns.
    """
    text = (resources.files("dmlbench.report") / "published.csv").read_text(encoding="utf-8")
    return [_published(raw) for raw in csv.DictReader(text.splitlines())]


def _published(raw: Mapping[str, str]) -> Entry:
    """The entry of a row of ``published.csv``."""
    loss, _, distance = raw["loss"].partition("-")
    distance = distance or "N"  # what HM's triplet loss is over
    names = (*PUBLISHED_BENIGN, *ERS_COLUMNS, "ERS")
    paper = HM if raw["source"] == "arXiv:2203.01439" else _documented(raw["dataset"])
    numbers = {name: Number(float(raw[name]), _decimals(raw[name])) for name in names if raw[name]}
    if distance == "N" and "ERS" not in numbers and numbers.keys() >= set(ERS_COLUMNS):
        score = ers({name: numbers[name].value for name in ERS_COLUMNS})
        numbers["ERS"] = Number(score, 1, note="ERS follows from the ten columns; none is printed.")
    return Entry(
        dataset=raw["dataset"],
        suite="ers",
        model=raw["model"],
        distance=distance,
        loss=f"{loss}-{distance}",
        label=_notation(raw["defense"]),
        eta=int(raw["pgd_steps_train"]) if raw["pgd_steps_train"] else None,
        paper=paper,
        place=raw["table"],
        numbers=numbers,
        better={name: directions()[name] for name in numbers},
        # an embedding that ES cannot move is constant: HM[S,0], of which no more is printed
        collapsed=raw["collapsed"] == "yes" or float(raw["ES:D"] or 1) == 0,
        threat=f"eps {raw['eps_eval']}, 32 steps of 3/255" if raw["eps_eval"] else "",
        optimizer="PGD",
    )


def _documented(dataset: str) -> Paper:
    """RobRank's paper, at the address of the table in its code's documentation."""
    return replace(ROBRANK, url=DOCUMENTATION.format(dataset))


def _notation(text: str) -> str:
    """A defense as HM's paper prints it: ``HM[S,−γ/2]``, ``HM[S,g_LGA]&ICS (λ=1.0)``."""
    for plain, printed in (("]+ICS", "]&ICS"), ("-gamma", "−γ"), ("lambda", "λ"), ("xi", "ξ")):
        text = text.replace(plain, printed)
    return text


def _decimals(text: str) -> int:
    return len(text.partition(".")[2])
