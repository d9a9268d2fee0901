"""A results folder: one JSON file for each cell, written atomically.

results/cells/<id>.json      a cell: its numbers, identity and provenance
results/cells/<id>.parquet   the outcome of each query
results/models/<id>/         trained models (``dmlbench.storage.checkpoint``)
results/runs/<id>.yaml       the resolved options of a run; ``run --config`` reads them
results/adversarial/         adversarial images: <id>.npz of a cell, and pictures
results/interrupted/         attacks that are under way (``dmlbench.storage.interrupted``)
results/quarantine/          damaged cells and models
results/.exported            digest of the last results.csv; .exported.lock is held meanwhile
results/*.csv                exports of the cells (``dmlbench.analysis.csv_files``)
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from dmlbench.common.errors import CellError, DamagedError, UserError
from dmlbench.common.files import read_file, remove_abandoned, write_atomically
from dmlbench.common.hashing import file_sha256
from dmlbench.storage.cell import Cell, decode, encode, named_by_seed
from dmlbench.storage.checkpoint import MANIFEST, Manifest, read_manifest

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    Outcomes = Mapping[str, npt.ArrayLike] | pd.DataFrame


_ID = "[0-9a-f]" * 16
WRITTEN = (
    *("results.csv", "results-????????.csv*", "wide.csv", "seeds.csv", ".exported*"),
    *(f"cells/{_ID}.json", f"cells/{_ID}*.parquet", f"models/{_ID}/*", f"runs/{_ID}.yaml"),
    *(f"adversarial/{_ID}.npz", f"adversarial/*/*-{_ID}/query-*.png", f"interrupted/{_ID}.npz"),
)
"""Patterns of the files that are written to a results folder."""


@dataclass(frozen=True)
class Store:
    """A results folder. It needs no lock: files appear whole, and are named by their identity.

    If two processes measure the same cell, they write the same file, and the last one is kept.

    Attributes:
        root: the folder.
        inode: its number in the file system when a run opened it; None: no run writes to it.
    """

    root: Path
    inode: int | None = None

    def check_in_place(self) -> None:
        """UserError if the folder was moved or deleted since the run opened it."""
        try:
            moved = self.inode not in (None, self.root.stat().st_ino)
        except FileNotFoundError:
            moved = self.inode is not None
        if moved:
            raise UserError(
                f"the results folder {self.root} was moved or deleted during the run: "
                "move it back and run again"
            )

    def model_folder(self, training_id: str) -> Path:
        """The folder of the model of a training run."""
        return self.root / "models" / training_id

    def is_trained(self, training_id: str) -> bool:
        """True if the model of a training run is there."""
        return (self.model_folder(training_id) / MANIFEST).is_file()

    def model_folders(self) -> list[Path]:
        """The folders of all trained models, sorted by name."""
        return sorted(path.parent for path in (self.root / "models").glob(f"*/{MANIFEST}"))

    def manifests(self) -> list[Manifest]:
        """The manifests of all trained models; one that cannot be read is left out."""
        found = map(self._manifest, self.model_folders())
        return [manifest for manifest in found if manifest is not None]

    def put(self, cell: Cell, outcomes: Outcomes | None = None) -> None:
        """Write the outcomes, then the cell: a cell that is there is complete.

        Where a cell is replaced, its new outcomes lie beside the old ones, under a name with their
        digest, until the new cell is there: whenever the process dies, a cell has its outcomes.

        Raises:
            CellError: the cell cannot be right (a recall of 250%); nothing is written.
            UserError: the folder has gone, or cannot be written to.
        """
        self.check_in_place()
        table, digest = b"", None
        if outcomes is not None:
            import pandas as pd

            buffer = io.BytesIO()
            pd.DataFrame(outcomes).rename_axis("query").to_parquet(buffer)
            table = buffer.getvalue()
            digest = hashlib.sha256(table).hexdigest()
        path, place = self.path(cell.id), self.path(cell.id, "parquet")
        beside = _beside(place, digest) if digest and path.exists() else place
        try:
            content = encode(msgspec.structs.replace(cell, outcomes=digest), path)
        except ValueError as error:
            raise CellError(f"the result cannot be right: {error}") from None
        if outcomes is not None:
            write_atomically(beside, table)
        write_atomically(path, content)
        if beside != place:
            with contextlib.suppress(FileNotFoundError):  # another run has stored the same
                beside.replace(place)

    def get(self, cell_id: str) -> Cell | None:
        """The cell of that identity; None if there is none, or its file is damaged.

        Raises:
            UserError: the file cannot be read, or a newer version wrote it.
        """
        return _read(self.path(cell_id))

    def done(self, cell_id: str) -> Cell | None:
        """The cell of that identity if it succeeded and its outcomes are there; else None."""
        cell = self.get(cell_id)
        if cell is None or not cell.ok:
            return None
        return cell if any(path.is_file() for path in self._places(cell)) else None

    def images(self, cell_id: str) -> Path:
        """The file of the adversarial images of a cell, if they were asked for."""
        return self.root / "adversarial" / f"{cell_id}.npz"

    def interrupted(self, cell_id: str) -> Path:
        """The file of the attack of a cell while it is under way."""
        return self.root / "interrupted" / f"{cell_id}.npz"

    def forget_interrupted(self, cell_id: str) -> None:
        """Delete that file, if it is there: the attack has ended, or begins again.

        Raises:
            UserError: it cannot be deleted.
        """
        path = self.interrupted(cell_id)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot delete {path}: {error.strerror}") from None

    def remove(self, cell_id: str) -> None:
        """Delete a cell, if it is there."""
        self.path(cell_id).unlink(missing_ok=True)

    def outcomes(self, cell_id: str) -> pd.DataFrame:
        """The outcome of each query: a column for each metric, rows by test index.

        Raises:
            UserError: they or their cell are missing or cannot be read; or they have changed since
                the cell was stored, and both are moved to quarantine.
        """
        import pandas as pd

        path, cell = self.path(cell_id, "parquet"), self.get(cell_id)
        read = [] if cell is None else [_content(place) for place in self._places(cell)]
        found = [content for content in read if content is not None]
        for content in found:
            if cell and cell.outcomes in (None, hashlib.sha256(content).hexdigest()):
                with contextlib.suppress(ValueError, OSError):  # a cell of schema 1 has no digest
                    return pd.read_parquet(io.BytesIO(content))
        if self.get(cell_id) != cell:
            return self.outcomes(cell_id)  # another run has replaced it meanwhile
        if not found:
            raise DamagedError(f"{path} or its cell is missing or damaged", "run again")
        self._quarantine(self.path(cell_id))
        raise DamagedError(
            f"{path} is damaged and was moved to {self.quarantine}",
            "run again to measure its cell anew",
        )

    def changed_outcomes(self, cells: Iterable[Cell]) -> list[Path]:
        """The files of those cells whose outcomes are not what they were when it was stored."""
        return [self.path(cell.id) for cell in cells if not self._same_outcomes(cell)]

    def _same_outcomes(self, cell: Cell) -> bool:
        there = False
        for path in self._places(cell):
            try:
                if cell.outcomes in (None, file_sha256(path)):
                    return True
                there = True
            except FileNotFoundError:
                pass
            except OSError as error:
                raise _unreadable(path, error) from None
        # missing ones are not damaged, and another run may have replaced both files meanwhile
        return not there or self.get(cell.id) != cell

    def _places(self, cell: Cell) -> list[Path]:
        """The files in which a cell's outcomes may lie; the first one that exists holds them."""
        place = self.path(cell.id, "parquet")
        return [place] if cell.outcomes is None else [_beside(place, cell.outcomes), place]

    def read(self) -> tuple[list[Cell], list[Path]]:
        """Every cell, and the paths of damaged files.

        The row of a training that failed is left out if the model is there: it was trained since.

        Raises:
            UserError: a file cannot be read, or a newer version wrote it.
        """
        found, damaged = [], []
        for path in self._paths():
            cell = _read(path)
            if cell is not None:
                if cell.ok or not self.is_trained(cell.id):
                    found.append(cell)
            elif path.exists():  # another run may have removed it
                damaged.append(path)
        seeds = {cell.id: cell.facts.get("seed") for cell in found}
        return [named_by_seed(cell, _seed_of_score(cell, seeds)) for cell in found], damaged

    def whole(self, cells: Iterable[Cell]) -> list[Cell]:
        """The cells without those whose outcomes are missing: these must be measured again."""
        there = set((self.root / "cells").glob("*.parquet"))
        return [cell for cell in cells if not cell.ok or not there.isdisjoint(self._places(cell))]

    def repair(self, damaged: Iterable[Path]) -> None:
        """Move damaged cells and their outcomes to ``quarantine/``.

        Temporary files of killed processes are deleted, and those of interrupted attacks whose cell
        is there; no others: the folder may be one that a user has other files in.
        """
        for path in damaged:
            self._quarantine(path)
        remove_abandoned(self.root, WRITTEN)
        for path in self.interrupted(_ID).parent.glob(f"{_ID}.npz"):
            if self.done(path.stem):
                self.forget_interrupted(path.stem)

    def cells(self) -> list[Cell]:
        """Every cell that counts, sorted by ``Cell.order``.

        A cell of weights that were replaced (the folder has the model of its training run with
        another checkpoint) does not count.
        """
        found, _ = self.read()
        replaced = {cell.id for cell in self.replaced(found)}
        current = [cell for cell in found if cell.id not in replaced]
        return sorted(current, key=lambda cell: cell.order)

    def replaced(self, cells: Iterable[Cell]) -> list[Cell]:
        """Those of ``cells`` whose training run has a model here with another checkpoint."""
        cells = [cell for cell in cells if "training" in cell.facts]
        trainings = {str(cell.facts["training"]) for cell in cells}
        manifests = {name: self._manifest(self.model_folder(name)) for name in trainings}
        standing = {name: one.sha256 for name, one in manifests.items() if one is not None}
        return [
            cell
            for cell in cells
            if standing.get(cell.facts["training"]) not in (None, cell.facts.get("checkpoint"))
        ]

    def path(self, cell_id: str, kind: str = "json") -> Path:
        """The file of a cell (``json``) or of its outcomes (``parquet``)."""
        return self.root / "cells" / f"{cell_id}.{kind}"

    def _paths(self) -> list[Path]:
        return sorted((self.root / "cells").glob("[!.]*.json"))

    def ids(self) -> set[str]:
        """The identities of all cells, damaged ones and those that do not count included."""
        return {path.stem for path in self._paths()}

    @property
    def quarantine(self) -> Path:
        """The folder that damaged cells are moved to."""
        return self.root / "quarantine"

    def set_aside(self, training_id: str) -> Path:
        """Move the folder of a damaged model to the quarantine; returns its place there."""
        folder, models = self.model_folder(training_id), self.quarantine / "models"
        try:
            models.mkdir(parents=True, exist_ok=True)
            place = next(
                place
                for number in itertools.count()
                if not (place := models / f"{training_id}{f'-{number}' * bool(number)}").exists()
            )
            folder.replace(place)
        except OSError as error:
            raise UserError(f"cannot move {folder} to {models}: {error.strerror}") from None
        return place

    def _quarantine(self, path: Path) -> None:
        """Move a cell's file and its outcomes to the quarantine."""
        folder = self.quarantine
        try:
            folder.mkdir(exist_ok=True)
            for file in (path, *path.parent.glob(f"{path.stem}.*parquet")):
                with contextlib.suppress(FileNotFoundError):  # another run has moved it
                    file.replace(folder / file.name)
        except OSError as error:
            raise UserError(f"cannot move {path} to {folder}: {error.strerror}") from None

    def _manifest(self, folder: Path) -> Manifest | None:
        """The manifest in a model's folder; None if there is none, or it cannot be read.

        The error is raised where the model itself is used.
        """
        try:
            return read_manifest(folder)
        except UserError:
            return None


def damaged_cell(path: Path) -> str:
    """The warning that the file of a cell cannot be read."""
    return f"{path} is damaged and left out; a run that needs it measures it again"


def no_results(folder: Path) -> str:
    """The message that a results folder has nothing."""
    return f"no results in {folder}: begin with 'dmlbench run --defense hm --attack ca+'"


def _seed_of_score(score: Cell, seeds: Mapping[str, int | None]) -> int | None:
    """The seed of the attacks that a score was computed from.

    None if it is unknown or the cell is no score.
    """
    found = (seeds.get(source) for source in score.facts.get("cells", ()))
    return next((seed for seed in found if seed is not None), None)


def _beside(place: Path, digest: str) -> Path:
    """The file of new outcomes until their cell is there; ``place`` is that of the old ones."""
    return place.with_suffix(f".{digest[:16]}.parquet")


def _read(path: Path) -> Cell | None:
    """The cell in a file, converted to today's schema; None if it is missing or damaged.

    Raises:
        UserError: the file cannot be read, or a newer version wrote it.
    """
    content = _content(path)
    try:
        return None if content is None else decode(content, path)
    except ValueError:
        return None


def _content(path: Path) -> bytes | None:
    """The content of a file; None if it is missing, UserError if it cannot be read."""
    try:
        return read_file(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> UserError:
    """The error of a file that may be sound: it is left where it is."""
    return UserError(f"{path} cannot be read ({error.strerror}): mend that and run again")
