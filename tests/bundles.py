"""An honest bundle of measured rows, and what a cheater can make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs

from dmlbench.analysis.csv_files import export
from dmlbench.common.hashing import identity
from dmlbench.metrics.bootstrap import bootstrap_mean, deciles
from dmlbench.metrics.ers import ers_per_query
from dmlbench.storage.cell import Cell
from dmlbench.storage.store import Store
from dmlbench.submission import bundle as bundles
from dmlbench.submission.verify import Verdict, verify
from tests.fork_server import ForkServer

QUERIES = 5


Edit = Callable[["Forgery"], None]


@dataclass
class Place:
    """A folder with measured rows and an honest bundle of them."""

    root: Path
    fork_server: ForkServer
    bundle: Path

    def forged(self, edit: Edit, to: Path) -> Path:
        """The bundle after ``edit``, with every hash made anew, as a cheater would."""
        folder = to / "forged"
        folder.mkdir()
        record = bundles.unpack(self.bundle, folder)
        forgery = Forgery(folder, record)
        edit(forgery)
        forgery.settle()
        bundles.write(to / "forged.zip", forgery.record, folder)
        return to / "forged.zip"


@dataclass
class Forgery:
    """The unpacked bundle of a cheater, who knows the package."""

    folder: Path
    record: bundles.Bundle

    @property
    def store(self) -> Store:
        return Store(self.folder)

    def cell(self, attack: str) -> Cell:
        return next(cell for cell in self.store.read()[0] if cell.about.attack == attack)

    def rename(self, cell: Cell, facts: dict[str, Any], **about: str) -> None:
        """The cell under other facts, with the identity of these; scores name it anew."""
        outcomes = self.store.outcomes(cell.id)
        new = structs.replace(
            cell,
            id=identity(facts),
            facts=facts,
            about=structs.replace(cell.about, **about),  # type: ignore[arg-type]
        )
        for kind in ("json", "parquet"):
            self.store.path(cell.id, kind).unlink()
        self.store.put(new, outcomes)
        for other in self.store.read()[0]:
            if cell.id in other.facts.get("cells", ()) and cell.id != new.id:
                ids = [new.id if one == cell.id else one for one in other.facts["cells"]]
                self.rename(other, other.facts | {"cells": ids})

    def outcomes(self, attack: str, column: str, values: np.ndarray[Any, Any]) -> None:
        """Other outcomes of a column, and the numbers and scores that follow from them."""
        cell = self.cell(attack)
        table = self.store.outcomes(cell.id)
        table[column] = values
        shown = dict(cell.findings)
        shown["deciles"] = shown["deciles"] | {column: deciles(values)}
        numbers = cell.metrics | {column: bootstrap_mean(values)}
        self.store.put(structs.replace(cell, metrics=numbers, findings=shown), table)
        every = self.store.cells()
        tables = {one.id: self.store.outcomes(one.id) for one in every}
        columns = {name: t[name].to_numpy() for t in tables.values() for name in t}
        for score in ("ERS", "worst case"):
            drawn = self.cell(score)
            (name,) = drawn.columns
            inputs = {
                key: tables[one][key].to_numpy()
                for one in drawn.facts["cells"]
                for key in tables[one]
                if not key.endswith(" clean")
            }
            right = [inputs[key] for key in ("R@1", "ES:R", "LTM", "GTM") if key in inputs]
            new = ers_per_query(columns) if score == "ERS" else np.minimum.reduce(right)
            self.store.put(structs.replace(drawn, metrics={name: bootstrap_mean(new)}), {name: new})

    def settle(self) -> None:
        """Bring CSV, list of cells and hashes up to date with the cells."""
        (self.store.root / bundles.ROWS).unlink()
        export(self.store)
        names = [
            path.relative_to(self.folder).as_posix()
            for place in ("cells", "models")
            for path in (self.folder / place).rglob("*.*")
        ]
        self.record = structs.replace(
            self.record,
            cells=tuple(cell.id for cell in self.store.cells()),
            files=bundles.digests(self.folder, [*names, bundles.ROWS]),
        )


def look_at(path: Path, queries: int = 2) -> Verdict:
    return verify(path, queries=queries, seed=5, progress=False)
