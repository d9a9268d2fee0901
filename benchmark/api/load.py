"""``load_model`` and ``load_results``: what a results folder holds."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from dmlbench.analysis.csv_files import read_tidy, stored_records
from dmlbench.api.report import Report
from dmlbench.common.errors import DamagedError, UserError
from dmlbench.common.files import as_path, is_folder
from dmlbench.common.numbers import check_whole
from dmlbench.core import spec
from dmlbench.datasets.base import DATASETS
from dmlbench.defenses.base import DEFENSES
from dmlbench.models.base import MODELS, parse_model
from dmlbench.storage.checkpoint import (
    MANIFEST,
    STATE,
    Manifest,
    load_weights,
    read_manifest,
    refuse_state,
    verified_manifest,
)
from dmlbench.storage.store import Store, damaged_cell, no_results
from dmlbench.zoo.fetch import local_or_zoo

if TYPE_CHECKING:
    from dmlbench.compute.embedding import EmbeddingModel

NAMES = ("defense", "label", "resolved", "training_id", "sha256")  # a model may be called by these


def load_model(
    source: str | Path | Mapping[str, Any],
    *,
    results: str | Path = "results",
    image_shape: tuple[int, int] | None = None,
    allow_code: bool = False,
) -> EmbeddingModel:
    """A trained model, its weights checked against the SHA-256 in its manifest.

    Args:
        source: one of
            - the name of a model of the zoo (``"fashion-mini/hm"``), which is fetched if need be;
            - the folder of a model, with its ``manifest.json``, or that manifest;
            - the name of a model in ``results``: its defense (``"hm"``, or ``"hm:eta=8"`` also
              where 8 is what the data set says), its label in tables, its training identity;
            - a row of ``results.csv`` or of ``Report.to_frame()``: found by its
              ``checkpoint_sha256``.
        results: where a name or a row is looked for: the folder and those below it.
        image_shape: (channels, side) of the images; None: those of the data set that it was
            trained on, which is read for it where the manifest does not say.
        allow_code: run the code that the manifest names, of a network ``module:factory`` say.

    Returns:
        The network on the CPU, in eval mode: images (B, C, H, W) in [0, 1] to embeddings (B, D), of
        unit length for the metrics N and C.

    Raises:
        UserError: there is no such model, several answer to the name, it is damaged, or it needs
            code that is not allowed.
    """
    from dmlbench.compute.randomness import as_trained

    folder = _folder(source, as_path("results", results))
    manifest = verified_manifest(folder)
    if manifest is None:
        refuse_state(folder / STATE)
        raise UserError(f"{folder} holds no model: it has no {MANIFEST}")
    if not allow_code:
        spec.refuse_reference(manifest.model, MODELS, f"{folder / MANIFEST}")
        spec.refuse_reference(manifest.dataset, DATASETS, f"{folder / MANIFEST}")
    channels, size = _image_shape(manifest) if image_shape is None else _shape(image_shape)
    with as_trained(manifest.training["seed"]):
        model = parse_model(manifest.model).build(channels, size)
    load_weights(folder / manifest.checkpoint, model)
    return model.eval()


def load_results(source: str | Path = "results") -> Report:
    """Stored results.

    Args:
        source: a results folder (its cells, and the CSVs beside them), or one CSV with one row
            per metric.

    Raises:
        UserError: there is nothing, or a CSV is damaged. Damaged cells are left out with a warning.
    """
    path = as_path("source", source)
    if path.is_file():
        return Report(tuple(read_tidy(path)))
    store = Store(path)
    for damaged in store.read()[1]:
        warnings.warn(damaged_cell(damaged), stacklevel=2)
    found = stored_records(store, store.cells())
    if not found:
        raise UserError(no_results(path))
    return Report(tuple(found))


def _folder(source: str | Path | Mapping[str, Any], results: Path) -> Path:
    """The folder of the model that ``source`` means."""
    if not isinstance(source, str | Path):
        try:
            name = str(source["checkpoint_sha256"])
        except (KeyError, TypeError):
            raise UserError("a row must have the column checkpoint_sha256") from None
    else:
        path = local_or_zoo(source)
        named = isinstance(source, str) and source.partition(":")[0] in DEFENSES.names()
        if not named and (is_folder(path) or path.name == MANIFEST):
            return path if is_folder(path) else path.parent
        name = str(source)
    known, damaged = _manifests(results)
    found = {
        manifest.sha256: folder
        for folder, manifest in known.items()
        if name in {str(getattr(manifest, key)) for key in NAMES} or _is_defense(name, manifest)
    }
    if len(found) != 1:
        there = ", ".join(sorted({manifest.defense for manifest in known.values()})) or "none"
        several = ", ".join(str(folder) for folder in found.values())
        raise UserError(
            f"{name!r} is several models: name one of {several}"
            if found
            else "; ".join([f"no model {name!r} in {results}; there are {there}", *damaged])
        )
    return found.popitem()[1]


def _is_defense(text: str, manifest: Manifest) -> bool:
    """True if ``text`` is a spec of the defense that a model was trained with.

    A key that it names has the value of the training, and one that it leaves out was left to the
    data set then too.
    """
    texts = (text, manifest.defense, manifest.resolved)
    if any(one.partition(":")[0] not in DEFENSES.names() for one in texts):  # no code is run
        return False
    try:
        asked, given, resolved = (spec.parse(one, DEFENSES) for one in texts)
    except UserError:
        return False
    return type(asked) is type(given) is type(resolved) and all(
        getattr(asked, p.name) in (getattr(given, p.name), getattr(resolved, p.name))
        for p in spec.parameters(type(asked))
    )


def _manifests(results: Path) -> tuple[dict[Path, Manifest], list[str]]:
    """Folder -> manifest of each complete model in ``results`` and below, and what is damaged.

    Models that a run has set aside as damaged are left out.
    """
    known: dict[Path, Manifest] = {}
    damaged = []
    for path in sorted(results.rglob(f"models/*/{MANIFEST}")):
        if "quarantine" in path.relative_to(results).parts:
            continue
        try:
            manifest = read_manifest(path.parent)
        except DamagedError as error:
            damaged.append(str(error))
            continue
        if manifest is not None:
            known[path.parent] = manifest
    return known, damaged


def _shape(given: Any) -> tuple[int, int]:
    """(channels, side) as a caller gave it; UserError if it is none."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise UserError(f"image_shape must be (channels, side), such as (3, 224), got {given!r}")
    for name, value in zip(("channels", "side"), given, strict=True):
        check_whole(f"image_shape: {name}", value, 1)
    return given[0], given[1]


def _image_shape(manifest: Manifest) -> tuple[int, int]:
    """(channels, side) of the images that a model was trained on."""
    if manifest.image_shape is not msgspec.UNSET:
        return manifest.image_shape
    data = spec.parse(manifest.dataset, DATASETS).load(None)
    return data.channels, data.size
