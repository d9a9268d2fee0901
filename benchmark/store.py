"""Results on disk: one JSON file a cell, written atomically, and CSV exports of them all.

results/cells/<id>.json      what one cell found, with its identity and provenance
results/cells/<id>.parquet   the outcome of each query
results/models/<id>/         trained models (``dmlbench.checkpoint``)
results/results.csv          tidy: a row a cell and metric
results/wide.csv             a row a model, a column a metric
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmlbench import tables
from dmlbench.files import write_atomically, write_json
from dmlbench.identity import identity

if TYPE_CHECKING:
    import pandas as pd

    from dmlbench.attacking import Outcomes

CELL_SCHEMA = 1
Cell = dict[str, Any]


@dataclass(frozen=True)
class Store:
    """A results folder. It needs no lock: files appear whole, and a cell's name is its identity."""

    root: Path

    def model_folder(self, training_id: str) -> Path:
        """Where the model of a training run lies."""
        return self.root / "models" / training_id

    def put(self, cell: Cell, outcomes: Outcomes | None = None) -> None:
        """Write a cell under its identity, its outcomes first: the cell says that it is whole."""
        if outcomes is not None:
            import pandas as pd

            buffer = io.BytesIO()
            pd.DataFrame(outcomes).rename_axis("query").to_parquet(buffer)
            write_atomically(self._path(cell["id"], "parquet"), buffer.getvalue())
        write_json(self._path(cell["id"]), {"schema": CELL_SCHEMA, **cell})

    def get(self, cell_id: str) -> Cell | None:
        """The cell of that identity, or None if there is none that can be trusted."""
        path = self._path(cell_id)
        return _read(path) if path.is_file() else None

    def done(self, cell_id: str) -> Cell | None:
        """The cell of that identity if it has succeeded and its outcomes are there."""
        cell = self.get(cell_id)
        whole = cell is not None and cell["status"] == "ok"
        return cell if whole and self._path(cell_id, "parquet").is_file() else None

    def remove(self, cell_id: str) -> None:
        """Forget a cell, if it is there."""
        self._path(cell_id).unlink(missing_ok=True)

    def outcomes(self, cell_id: str) -> pd.DataFrame:
        """The outcome of each query: columns as in the cell's metrics, rows by test index."""
        import pandas as pd

        return pd.read_parquet(self._path(cell_id, "parquet"))

    def cells(self) -> list[Cell]:
        """Every cell that stands, sorted by what it is about (``tables.order``).

        A cell of weights that have been replaced since (its training run is here, with another
        checkpoint) does not stand.
        """
        paths = sorted((self.root / "cells").glob("*.json"))
        found = [cell for path in paths if (cell := _read(path)) is not None]
        standing = {training: self._checkpoint(training) for training in _trainings(found)}
        current = [
            cell
            for cell in found
            if standing.get(cell["facts"].get("training"))
            in (None, cell["facts"].get("checkpoint"))
        ]
        return sorted(current, key=tables.order)

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

    def _path(self, cell_id: str, kind: str = "json") -> Path:
        return self.root / "cells" / f"{cell_id}.{kind}"

    def _checkpoint(self, training_id: str) -> str | None:
        """The checkpoint that a training run has now; None if it is not here."""
        try:
            manifest = json.loads((self.model_folder(training_id) / "manifest.json").read_bytes())
            return str(manifest["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _trainings(cells: Iterable[Cell]) -> set[str]:
    return {t for cell in cells if isinstance(t := cell["facts"].get("training"), str)}


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
