"""Find the stored cells of a model by what users call it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dmlbench.common.errors import UserError
from dmlbench.common.hashing import file_sha256
from dmlbench.core import spec
from dmlbench.defenses.base import DEFENSES
from dmlbench.storage.cell import Cell
from dmlbench.storage.checkpoint import MANIFEST, STATE, read_manifest, refuse_state
from dmlbench.storage.store import Store, no_results
from dmlbench.zoo.fetch import local_or_zoo
from dmlbench.zoo.registry import models

DIGITS = 8  # of the SHA-256 of weights that are enough to name them


def as_stored(name: str) -> str:
    """A model's name as rows spell it: ``noise`` for ``noise.py:Noise``, keys in their order.

    What is no spec of a defense that is known here stays as it is.

    Raises:
        UserError: it names a file or a class that cannot be read.
    """
    pointed = spec.read_reference(name, DEFENSES)
    if pointed is None and name.partition(":")[0] not in DEFENSES.names():
        return name
    try:
        return spec.shown(spec.parse(name, DEFENSES))
    except UserError:
        if pointed is not None:
            raise
        return name  # an old row may have a key that there is no more


def measured_cells(
    name: str, store: Store, wanted: Callable[[Cell], bool], where: Iterable[str] = ()
) -> list[Cell]:
    """The stored cells of a model that are whole, measured and ``wanted``.

    Args:
        name: as in ``cells_of``.
        store: the results folder.
        wanted: true for the cells to take.
        where: the user's conditions among them, for the message.

    Raises:
        UserError: there are none.
    """
    stored = store.cells()
    if not stored:
        raise UserError(no_results(store.root))
    found = [c for c in cells_of(name, stored) if wanted(c) and store.done(c.id) is not None]
    if not found:
        conditions = "".join(f" with {text}" for text in where)
        known = {
            f"{c.about.defense} on {c.about.dataset}" if conditions else c.about.defense
            for c in stored
            if store.done(c.id) is not None
        }
        raise UserError(
            f"nothing was measured of {name!r}{conditions} in {store.root}; measured there: "
            f"{', '.join(sorted(known)) or 'nothing'}"
        )
    return found


def cells_of(name: str | Path, cells: Sequence[Cell]) -> list[Cell]:
    """Those of ``cells`` that were measured of a model.

    Args:
        name: the checkpoint or the folder of a model; as text also its name in the zoo, or one that
            cells have (``names_of``).
        cells: stored cells.

    Raises:
        UserError: it is a folder that is no model's.
    """
    path = name if isinstance(name, Path) else checkpoint_path(name, cells)
    if path is None:
        return [cell for cell in cells if name in names_of(cell)]
    digest = weights_digest(path)
    return [cell for cell in cells if cell.facts.get("checkpoint") == digest]


def has_cells(name: str, cells: Sequence[Cell]) -> bool:
    """True if a model may have outcomes of single queries: a path, or a name among the cells."""
    if name in models():
        return any(models()[name].manifest.sha256 == c.facts.get("checkpoint") for c in cells)
    path = checkpoint_path(name, cells)
    return path is not None or any(name in names_of(cell) for cell in cells)


def checkpoint_path(name: str, cells: Iterable[Cell]) -> Path | None:
    """The checkpoint or the folder of a model that ``name`` is the path of, or its zoo name.

    None if there is none. The name of a defense, or of a model among the cells, is no path, also
    where a file happens to be called so: ``./none`` is that file.
    """
    defense = name.partition(":")[0] in DEFENSES.names()
    if defense or any(name in names_of(cell) for cell in cells):
        return None
    path = local_or_zoo(name)
    return path if path.exists() else None


def names_of(cell: Cell) -> set[str]:
    """The names of the model of a cell: its defense, its label, its training."""
    about = cell.about
    return {about.defense, about.label, about.resolved, cell.facts.get("training", "")}


def weights_digest(path: Path) -> str:
    """SHA-256 of the weights in a file or in a model's folder."""
    refuse_state(path)
    if path.is_file():
        return file_sha256(path)
    manifest = read_manifest(path)
    if manifest is None:
        refuse_state(path / STATE)
        raise UserError(f"{path} is no model's folder: it has no {MANIFEST}")
    return manifest.sha256


def names_weights(name: str, digest: str) -> bool:
    """True if ``name`` is the SHA-256 of weights, or its first digits, in any letter case."""
    return len(name) >= DIGITS and digest.startswith(name.lower())


def refuse_several_sets(name: str, datasets: Iterable[str]) -> None:
    """UserError if the numbers that a name chooses are of several data sets."""
    first, *others = sorted(set(datasets))
    if others:
        raise UserError(
            f"{name!r} was measured on several data sets: add --dataset {first}, "
            f"or {', '.join(others)}"
        )
