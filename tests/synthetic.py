"""Invented cells, as input for boards."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from dmlbench.analysis import csv_files
from dmlbench.analysis.records import TIDY_COLUMNS, tidy
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.metrics.ers import ERS_COLUMNS
from dmlbench.report.board import Board, Table, tables
from dmlbench.report.entries import measured
from dmlbench.report.render import boards
from dmlbench.storage.cell import Cell, ColumnInfo
from tests.cells import cell, failing

LOWER = ("CA-", "QA-", "TMA", "ES:D")
FULL = dict(zip(ERS_COLUMNS, (10, 40, 12, 38, 0.5, 1.0, 20, 18, 22, 5), strict=True))


def model(values: dict[str, float] = FULL, collapsed: bool = False, **about: Any) -> list[Cell]:
    """The cells of a model: benign R@1 and R@2, and each of ``values`` as an attack's metric."""
    benign = cell("R@1", 80, **_named(about) | {"suite": "", "attack": ""})
    benign.columns["R@2"] = benign.columns["R@1"]
    benign.metrics["R@2"] = Estimate(88.0, 86.5, 89.25, 40)
    benign.findings.update({"collapsed": collapsed, "mean_cosine": 0.25, "effective_rank": 30.5})
    return [benign, *(attacked(name, value, **about) for name, value in values.items())]


def attacked(
    name: str,
    value: float,
    changed: str = "",
    deciles: Iterable[float] = (),
    curve: Iterable[tuple[float, float]] = (),
    **about: Any,
) -> Cell:
    """Make the cell of an attack; ``changed`` are values unlike the protocol: ``eps=4/255``."""
    attack = name.lower().partition(":")[0]
    keys = {"eps": "77/255", "alpha": "3/255", "steps": "32"}
    keys |= dict(pair.split("=") for pair in changed.split(",") if pair)
    about["attack"] = f"{attack}:{changed}" if changed else attack
    resolved = f"{attack}:{','.join(f'{key}={text}' for key, text in keys.items())}"
    one = cell(name, value, **_named(about), attack_resolved=resolved)
    width = 0.01 if name in ("TMA", "ES:D") else min(1.0, value, 100 - value)
    one.metrics[name] = Estimate(value, value - width, value + width, 40)
    unit = "" if name in ("TMA", "ES:D") else "%"
    one.columns[name] = ColumnInfo(unit, "lower" if name in LOWER else "higher")
    one.findings.update({"clean": {name: 50.0}, "deciles": {name: list(deciles)}})
    if curve:
        one.findings["curves"] = {name: [list(point) for point in curve]}
    return one


def _named(about: dict[str, Any]) -> dict[str, Any]:
    """Use the label as the name of the defense unless one is given."""
    return {"defense": about["label"]} | about if "label" in about else about


def failed(name: str, error: str, **about: Any) -> Cell:
    """The cell of an attack that ended in an error."""
    return failing(attacked(name, 1, **about), error)


def write(path: Path, cells: Iterable[Cell]) -> Path:
    """The tidy CSV of the cells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    csv_files.write(path, TIDY_COLUMNS, tidy(cells))
    return path


def many(count: int) -> list[Cell]:
    """``count`` models with every column of the papers, no two alike."""
    found = []
    for place in range(count):
        share = place / count
        values = {name: value * (0.5 + share / 2) for name, value in FULL.items()}
        about = {"label": f"HM[S,{place}]"}
        found += model(values, **about)
        found.append(cell("mAP", 20 + share, suite="", attack="", **_named(about)))
    return found


def one_board(*cells: dict[str, object]) -> Board:
    """The board of cells of one data set, without the literature."""
    (board,) = boards(tidy(cells), literature=False)
    return board


@functools.cache
def swept() -> Table:
    """Two defenses and an undefended model, a sweep over eps and steps, ranks of queries."""
    cells = []
    for label, cost, share in (("N/A[R]", 1, 0.2), ("ACT[R]", 9, 0.9), ("HM[S,<g>$_2]", 33, 1.0)):
        about = {"label": label, "training_cost": cost}
        values = {name: value * share for name, value in FULL.items()}
        cells += [c for c in model(values, **about) if c.about.attack != "ca+"]
        cells.append(attacked("CA+", 10 * share, deciles=range(0, 101, 10), **about))
        curve = [(0, 80), (2.0, 60 * share), (9.0, 20 * share), (77.0, 0)]
        cells.append(attacked("Radius", 20 * share, curve=curve, **about))
        for changed in ("eps=8/255", "eps=16/255", "steps=4", "steps=8", "w=5"):
            cells.append(attacked("CA+", 30 * share, changed=changed, **about))
        fgsm = attacked("CA+", 40 * share, changed="steps=1", **about)
        resolved = fgsm.about.attack_resolved.replace("alpha=3/255", "alpha=77/255")
        cells.append(replace(fgsm, about=replace(fgsm.about, attack_resolved=resolved)))
    (one,) = tables(measured(tidy(cells)))
    return one
