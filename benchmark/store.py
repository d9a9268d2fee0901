"""Results on disk: one JSON file a cell, written atomically, and CSV exports of them all.

results/cells/<id>.json      what one cell found, with its identity and provenance
results/models/<id>/         trained models (``dmlbench.checkpoint``)
results/results.csv          tidy: a row a cell and metric
results/wide.csv             a row a model, a column a metric
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmlbench import tables
from dmlbench.errors import UserError
from dmlbench.files import write_atomically, write_json
from dmlbench.identity import identity

CELL_SCHEMA = 1
Cell = dict[str, Any]


@dataclass(frozen=True)
class Store:
    """A results folder. It needs no lock: files appear whole, and a cell's name is its identity."""

    root: Path

    def model_folder(self, training_id: str) -> Path:
        """Where the model of a training run lies."""
        return self.root / "models" / training_id

    def check_writable(self) -> None:
        """UserError now rather than after an hour of training, if results cannot be written."""
        existing = next(p for p in [self.root, *self.root.absolute().parents] if p.exists())
        if not existing.is_dir():
            raise UserError(f"--results {self.root}: {existing} is not a folder")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"--results {self.root} cannot be written to: {error.strerror}"
            ) from None

    def put(self, cell: Cell) -> None:
        """Write a cell under its identity."""
        write_json(self._path(cell["id"]), {"schema": CELL_SCHEMA, **cell})

    def get(self, cell_id: str) -> Cell | None:
        """The cell of that identity, or None if there is none that can be trusted."""
        path = self._path(cell_id)
        return _read(path) if path.is_file() else None

    def done(self, cell_id: str) -> Cell | None:
        """The cell of that identity if it has succeeded."""
        cell = self.get(cell_id)
        return cell if cell is not None and cell["status"] == "ok" else None

    def cells(self) -> list[Cell]:
        """Every cell, sorted by what it is about (``tables.order``)."""
        paths = sorted((self.root / "cells").glob("*.json"))
        found = [cell for path in paths if (cell := _read(path)) is not None]
        return sorted(found, key=tables.order)

    def damaged(self) -> list[Path]:
        """Cell files that cannot be read or are not what their name says; they are ignored."""
        paths = sorted((self.root / "cells").glob("*.json"))
        return [path for path in paths if _read(path) is None]

    def export(self) -> tuple[Path, Path]:
        """Write results.csv and wide.csv; returns their paths."""
        cells = self.cells()
        tidy, wide = self.root / "results.csv", self.root / "wide.csv"
        write_atomically(tidy, _csv(tables.TIDY_COLUMNS, tables.tidy(cells)))
        rows = tables.wide(cells)
        write_atomically(wide, _csv(tables.wide_columns(rows), [row.record() for row in rows]))
        return tidy, wide

    def _path(self, cell_id: str) -> Path:
        return self.root / "cells" / f"{cell_id}.json"


def _read(path: Path) -> Cell | None:
    try:
        cell: Cell = json.loads(path.read_bytes())
        known = cell["schema"] == CELL_SCHEMA
        honest = identity(cell["facts"]) == cell["id"] == path.stem
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return cell if known and honest else None


def _csv(columns: Iterable[str], records: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()
