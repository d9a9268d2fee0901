"""The weights that a run measures: trained in it, from a file, or of a network in memory.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dmlbench.common.errors import UserError
from dmlbench.common.hashing import file_sha256
from dmlbench.core import spec
from dmlbench.datasets.base import Dataset
from dmlbench.models.base import Model, parse_model, shown_model
from dmlbench.storage.cell import About
from dmlbench.storage.checkpoint import MANIFEST, Manifest, read_manifest, verified_manifest
from dmlbench.storage.store import Store
from dmlbench.sweep.tasks import Weights
from dmlbench.training.job import Training

UNTRAINED = "untrained"  # in the place of a checkpoint's digest


def trained_weights(
    training: Training, manifest: Manifest | None, store: Store, precision: str
) -> Weights:
    """The weights of a training; ``UNTRAINED`` is their digest as long as there is no manifest."""
    facts = {
        "checkpoint": manifest.sha256 if manifest else UNTRAINED,
        "training": training.id,
        "data": training.digest,
        "model": training.model.facts,
    }
    folder = store.model_folder(training.id)
    path = folder / (manifest.checkpoint if manifest else "")
    about = _about(
        training.dataset,
        training.model,
        training.spelling,
        training.defense.label,
        precision,
        training.seed,
        recipe=training.recipe_changes,
        resolved=spec.shown(training.defense),
        training_cost=training.defense.training_cost,
    )
    return Weights(training.model, path, facts, about, training.seed, training.shown)


def trained_on(path: Path) -> str:
    """Spec of the data set that a checkpoint was trained on, by its manifest; empty without one.

    Args:
        path: a model's folder, its manifest or its file of weights.
    """
    known = read_manifest(_folder(path))
    named = known and (_folder(path) == path or path.name in (MANIFEST, known.checkpoint))
    return known.dataset if known and named else ""


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def checkpoint_weights(
    dataset: Dataset,
    digest: str,
    model: Model | None,
    path: Path,
    label: str | None,
    seed: int,
    precision: str,
) -> Weights:
    """Weights from a file, a model's folder or its manifest; a manifest beside them is made use of.

    Args:
        dataset: what they are measured on.
        digest: content digest of the data.
        model: the network; None: the manifest's, or else the data set's.
        path: the file of weights, the folder or the manifest.
        label: name of the model in tables; None: the manifest's, or else the file's.
        seed: decides the targets of attacks.
        precision: of the network in evaluation.

    Raises:
        UserError: they are not there.
    """
    check_seeds([seed])
    known = verified_manifest(_folder(path))
    whole = path.is_dir() or path.name == MANIFEST
    if path.is_dir() and known is None:
        raise UserError(f"checkpoint {path} is a folder without a {MANIFEST}: name a file")
    weights = _folder(path) / known.checkpoint if whole and known else path
    if not weights.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    sha256 = file_sha256(weights)
    if known is not None and known.sha256 != sha256:
        known = None
    network = model or parse_model((known.model if known else "") or dataset.protocol.model)
    facts = {"checkpoint": sha256, "data": digest, "model": network.facts}
    if known:
        facts["training"] = known.training_id
    name = label or (known.label if known else weights.stem)
    about = _about(
        spec.shown(dataset),
        network,
        label or (known.defense if known else name),
        name,
        precision,
        known.training["seed"] if known else seed,
        resolved=known.resolved if known else "",
        training_cost=known.training_cost if known else 0,
    )
    return Weights(network, weights, facts, about, seed)


def memory_weights(
    dataset: Dataset,
    digest: str,
    model: Model,
    checkpoint: str,
    label: str,
    seed: int,
    precision: str,
) -> Weights:
    """The weights of a network in memory, which ``model`` holds; ``checkpoint`` is their digest."""
    check_seeds([seed])
    facts = {"checkpoint": checkpoint, "data": digest, "model": model.facts}
    about = _about(spec.shown(dataset), model, label, label, precision, seed)
    return Weights(model, None, facts, about, seed)


def _about(
    dataset: str,
    model: Model,
    defense: str,
    label: str,
    precision: str,
    seed: int,
    *,
    recipe: str = "",
    resolved: str = "",
    training_cost: int = 0,
) -> About:
    """The row of a model in tables; what an attack adds to it is still empty."""
    return About(
        dataset=dataset,
        model=shown_model(model),
        distance=model.metric,
        recipe=recipe,
        defense=defense,
        label=label,
        resolved=resolved,
        training_cost=training_cost,
        seed=seed,
        precision=precision,
        suite="",
        queries="",
        attack="",
        attack_resolved="",
    )


def check_seeds(seeds: Iterable[int]) -> None:
    """UserError unless every seed is a whole number from 0 up."""
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise UserError(f"seed must be at least 0 and a whole number, got {seed!r}")
