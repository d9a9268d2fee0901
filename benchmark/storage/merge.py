"""Merge results folders: cells by identity, models by training run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dmlbench.common.errors import UserError
from dmlbench.common.files import read_file, write_atomically
from dmlbench.storage.checkpoint import MANIFEST, WEIGHTS, verified_manifest
from dmlbench.storage.store import Store


@dataclass
class Merged:
    """Numbers of cells and models that were copied."""

    cells: int = 0
    models: int = 0


def merge(source: Store, target: Store, warn: Callable[[str], None]) -> Merged:
    """Copy the cells and models that the target lacks; nothing in the target is lost.

    A failed cell of the target is replaced by one that succeeded. If both folders have a model
    with different weights, the target keeps its own, and the source's cells of the other weights
    are not copied.

    Raises:
        UserError: the source holds no results, or a model of it is damaged.
    """
    cells, damaged = source.read()
    if not cells:
        raise UserError(f"{source.root} holds no results")
    changed = source.changed_outcomes(cells)
    for path in [*damaged, *changed]:
        warn(f"{path} is damaged and left behind")
    merged, other = Merged(), set()
    for folder in sorted(path.parent for path in (source.root / "models").glob(f"*/{MANIFEST}")):
        theirs = verified_manifest(folder)
        ours = verified_manifest(target.model_folder(folder.name))
        if ours is None:
            _copy(folder, target.model_folder(folder.name))
            merged.models += 1
        elif theirs is not None and ours.sha256 != theirs.sha256:
            other.add(theirs.sha256)
            warn(
                f"model {folder.name} ({ours.label}) has other weights in {source.root}: those "
                f"of {target.root} stand, and the cells of the others are left behind"
            )
    for cell in source.whole(cells):
        if source.path(cell.id) in changed:
            continue
        known = target.get(cell.id)
        better = known is None or (cell.ok and not known.ok)
        if better and cell.facts.get("checkpoint") not in other:
            target.put(cell, source.outcomes(cell.id) if cell.ok else None)
            merged.cells += 1
    return merged


def _copy(source: Path, target: Path) -> None:
    """Copy the weights, then the manifest: a model with a manifest is complete."""
    for name in (WEIGHTS, MANIFEST):
        write_atomically(target / name, read_file(source / name))
