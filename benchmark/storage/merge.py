"""Merge results folders: cells by identity, models by training run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dmlbench.common.errors import UserError
from dmlbench.common.files import atomic_file, open_file, read_file, write_atomically
from dmlbench.common.hashing import file_sha256
from dmlbench.storage.cell import Cell
from dmlbench.storage.checkpoint import MANIFEST, WEIGHTS, verified_manifest
from dmlbench.storage.store import Store

IMAGES = "adversarial_sha256"  # finding of a cell whose adversarial images were stored


@dataclass(frozen=True)
class Merged:
    """Numbers of cells and models that were copied."""

    cells: int
    models: int


def check_models(store: Store) -> None:
    """DamagedError if a model of a results folder is not what its manifest says."""
    for folder in store.model_folders():
        verified_manifest(folder)


def merge(source: Store, target: Store, warn: Callable[[str], None]) -> Merged:
    """Copy the cells and models that the target lacks; nothing in the target is lost.

    A failed cell of the target is replaced by one that succeeded, and a cell by the same one with
    more columns, if the numbers that both have are equal. The adversarial images of a cell come
    with it. If the target has other weights of a training run, as its model or as what its cells
    were measured of, they stand: the source's model and the cells of its weights are not copied.
    Nor are cells of other weights than a model of the target, whether or not the source has their
    model, and scores drawn from cells that have other numbers in the target.

    Raises:
        UserError: the source holds no results, or a model of it is damaged.
    """
    cells, damaged = source.read()
    if not cells and not source.model_folders():
        raise UserError(f"{source.root} holds no results")
    changed = source.changed_outcomes(cells)
    for path in [*damaged, *changed]:
        warn(f"{path} is damaged and left behind")
    models, other = _merge_models(source, target, warn)
    replaced = target.replaced(cells)
    unsaid = (cell for cell in replaced if cell.facts.get("checkpoint") not in other)
    for training, label in sorted({(cell.facts["training"], cell.about.label) for cell in unsaid}):
        warn(
            f"cells of {label} in {source.root} are of other weights than model {training} of "
            f"{target.root}, which stands: they are left behind"
        )
    known = {cell.id: target.done(cell.id) if cell.ok else target.get(cell.id) for cell in cells}
    differing = {cell.id for cell in cells if _differs(cell, known[cell.id])}
    if differing:
        warn(
            f"{len(differing)} of the cells in {source.root} have other numbers than the same ones "
            f"in {target.root}, which stand; scores drawn from them are left behind, and a run "
            "draws those of the target"
        )
    left = differing | {cell.id for cell in replaced}
    _warn_of_namesakes(cells, source, target, warn)
    copied = 0
    for cell in cells:
        ours = known[cell.id]
        if (
            cell.id in left
            or source.path(cell.id) in changed
            or cell.facts.get("checkpoint") in other
            or differing.intersection(cell.facts.get("cells", ()))
            or (ours is not None and not _is_wider(cell, ours))
            or (not cell.ok and target.is_trained(cell.id))
        ):
            continue
        if ours is not None and _lacks_images(cell, ours):
            warn(
                f"{source.path(cell.id)} has more columns than that of {target.root}, but not its "
                "adversarial images: it is left behind"
            )
        elif cell.ok and source.done(cell.id) is None:
            warn(f"the outcomes of {source.path(cell.id)} are missing, so it is left behind")
        else:
            _copy_images(cell, source.images(cell.id), target.images(cell.id), warn)
            target.put(cell, source.outcomes(cell.id) if cell.ok else None)
            copied += 1
    return Merged(copied, models)


def _warn_of_namesakes(
    cells: Iterable[Cell], source: Store, target: Store, warn: Callable[[str], None]
) -> None:
    """Warn of models of the user's own with one name and other weights in the two folders."""

    def weights(some: Iterable[Cell]) -> dict[tuple[str | int, ...], set[str]]:
        found: dict[tuple[str | int, ...], set[str]] = {}
        for cell in some:
            about, facts = cell.about, cell.facts
            if "training" not in facts and "checkpoint" in facts:
                row = (about.label, about.dataset, about.model, about.seed, about.precision)
                found.setdefault(row, set()).add(facts["checkpoint"])
        return found

    ours = weights(target.cells())
    names = {row[0] for row, theirs in weights(cells).items() if theirs - ours.get(row, theirs)}
    if names:
        warn(
            f"{source.root} and {target.root} have other weights under the names "
            f"{', '.join(map(repr, sorted(names)))}, and tables show those measured last: give "
            "them labels of their own there (dmlbench attack --label)"
        )


def _differs(cell: Cell, known: Cell | None) -> bool:
    """True if two measurements of one cell have other numbers in a column that both have."""
    ours = known.metrics if known is not None else {}
    return any(ours[name] != cell.metrics[name] for name in ours.keys() & cell.metrics.keys())


def _is_wider(cell: Cell, known: Cell) -> bool:
    """True if a cell has the columns of the known one and more."""
    return cell.ok and cell.columns.keys() > known.columns.keys()


def _lacks_images(cell: Cell, known: Cell) -> bool:
    """True if the known cell has adversarial images, and the other one others or none."""
    return known.findings.get(IMAGES) not in (None, cell.findings.get(IMAGES))


def _merge_models(
    source: Store, target: Store, warn: Callable[[str], None]
) -> tuple[int, set[str]]:
    """Copy the models that the target lacks.

    Returns their number, and the SHA-256 of the weights that were left behind.
    """
    copied, other = 0, set()
    measured: dict[str, set[str]] = {}  # training run -> the weights of the target's cells
    for cell in target.read()[0]:
        if "training" in cell.facts and "checkpoint" in cell.facts:
            measured.setdefault(cell.facts["training"], set()).add(cell.facts["checkpoint"])
    for folder in source.model_folders():
        theirs = verified_manifest(folder)
        if theirs is None:  # it was removed meanwhile
            continue
        ours = verified_manifest(target.model_folder(folder.name))
        standing = {ours.sha256} if ours else measured.get(folder.name, set())
        if standing - {theirs.sha256}:
            other.add(theirs.sha256)
            warn(
                f"model {folder.name} ({theirs.label}) has other weights in {source.root}: those "
                f"of {target.root} stand, and the cells of the others are left behind"
            )
        elif ours is None:
            _copy(folder, target.model_folder(folder.name))
            copied += 1
    return copied, other


def _copy_images(cell: Cell, source: Path, target: Path, warn: Callable[[str], None]) -> None:
    """Copy the adversarial images of a cell, part by part, if they are those of its digest."""
    if (digest := cell.findings.get(IMAGES)) is None or not source.is_file():
        return
    if file_sha256(source) != digest:
        warn(f"{source} is damaged (SHA-256 differs) and left behind")
        return
    with open_file(source) as images, atomic_file(target) as file:
        shutil.copyfileobj(images, file)


def _copy(source: Path, target: Path) -> None:
    """Copy the weights, then the manifest: a model with a manifest is complete."""
    for name in (WEIGHTS, MANIFEST):
        write_atomically(target / name, read_file(source / name))
