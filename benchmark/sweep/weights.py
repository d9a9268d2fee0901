"""The weights that a run measures: trained in it, from a file, as published, or in memory.

Imports no torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dmlbench.common.errors import UserError
from dmlbench.common.hashing import derived_seed
from dmlbench.common.numbers import check_whole
from dmlbench.compute.device import Compute
from dmlbench.core import spec
from dmlbench.core.naming import without_paths
from dmlbench.core.protocol import recipe_changes
from dmlbench.core.reference import foreign
from dmlbench.core.spec import refuse_reference
from dmlbench.datasets.base import DATASETS, Dataset, RetrievalData
from dmlbench.models.base import MODELS, Model, canonical_model, parse_model, shown_model
from dmlbench.models.module import ModuleModel, module_model
from dmlbench.storage.cell import About
from dmlbench.storage.checkpoint import (
    MANIFEST,
    Manifest,
    is_described,
    read_manifest,
    stored_weights,
)
from dmlbench.storage.store import Store
from dmlbench.sweep.tasks import Weights
from dmlbench.training.job import Training

UNTRAINED = "untrained"  # in the place of a checkpoint's digest


def trained_weights(
    training: Training, manifest: Manifest | None, store: Store, compute: Compute
) -> Weights:
    """The weights of a training; ``UNTRAINED`` is their digest as long as there is no manifest.

    ``compute``: its precision and draws are part of the row.
    """
    facts = {
        "checkpoint": manifest.sha256 if manifest else UNTRAINED,
        "training": training.id,
        "data": training.digest,
        "model": training.model.facts,
    }
    folder = store.model_folder(training.id)
    path = folder / (manifest.checkpoint if manifest else "")
    with foreign(training.defense):
        label, cost = training.defense.label, training.defense.training_cost
    about = _about(
        training.dataset,
        training.model,
        training.spelling,
        label,
        compute,
        training.seed,
        recipe=training.recipe_changes,
        resolved=spec.shown(training.defense),
        training_cost=cost,
    )
    return Weights(training.model, path, facts, about, training.seed, training.shown)


def trained_on(path: Path, allow_code: bool = False) -> str:
    """Spec of the data set that a checkpoint was trained on, by its manifest; empty without one.

    Args:
        path: a model's folder, its manifest or its file of weights.
        allow_code: the code of a data set that the manifest names may be run.

    Raises:
        UserError: the manifest names code that is not allowed.
    """
    known = read_manifest(_folder(path)) if is_described(path) else None
    named = known and (_folder(path) == path or path.name in (MANIFEST, known.checkpoint))
    if not known or not named:
        return ""
    if not allow_code:
        refuse_reference(known.dataset, DATASETS, f"the manifest of {path}")
    return known.dataset


def _recipe(manifest: Manifest, dataset: Dataset) -> str:
    """The changes of the recipe that weights were trained by; empty if on another data set."""
    if without_paths(manifest.dataset) != without_paths(spec.shown(dataset)):
        return ""
    return recipe_changes(manifest.training.get("recipe", {}), dataset.protocol.recipe)


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def checkpoint_weights(
    dataset: Dataset,
    digest: str,
    model: Model | None,
    path: Path,
    *,
    label: str | None,
    seed: int | None,
    compute: Compute,
    allow_code: bool = False,
    training_seed: int | None = None,
) -> Weights:
    """Weights from a file, a model's folder or its manifest; a manifest beside them is made use of.

    Args:
        dataset: what they are measured on.
        digest: content digest of the data.
        model: the network; None: the manifest's, or else the data set's.
        path: the file of weights, the folder or the manifest.
        label: name of the model in tables; None: the manifest's, or else the file's.
        seed: decides the targets of attacks; None: that of the training, as a run has it.
        compute: its precision and draws are part of the row.
        allow_code: run the code of a network that the manifest names (``module:factory``).
        training_seed: that of the training where no manifest says it; None: 0.

    Raises:
        UserError: they are not there, the manifest names code that is not allowed, or another seed.
    """
    stored = stored_weights(path)
    known = stored.manifest
    trained = known.training["seed"] if known else training_seed or 0
    if training_seed not in (None, trained):
        raise UserError(f"the manifest of {path} says that the training seed is {trained}")
    seed = trained if seed is None else seed
    check_seeds([seed, trained])
    if known is not None and model is None and not allow_code:
        refuse_reference(known.model, MODELS, f"the manifest of {path}")
    network = model or parse_model((known.model if known else "") or dataset.protocol.model)
    facts = {"checkpoint": stored.sha256, "data": digest, "model": network.facts}
    if known:
        facts["training"] = known.training_id
    name = label or (known.label if known else stored.path.stem)
    about = _about(
        spec.shown(dataset),
        network,
        label or (known.defense if known else name),
        name,
        compute,
        trained,
        recipe=_recipe(known, dataset) if known else "",
        resolved=known.resolved if known else "",
        training_cost=known.training_cost if known else 0,
    )
    return Weights(network, stored.path, facts, about, seed)


def memory_weights(
    dataset: Dataset,
    digest: str,
    model: Model,
    checkpoint: str,
    label: str,
    seed: int,
    compute: Compute,
    made_with: int = 0,
) -> Weights:
    """The weights of a network in memory, which ``model`` holds; ``checkpoint`` is their digest.

    ``seed`` is that of the attacks; ``made_with`` that of the weights, 0 if it is unknown. The
    precision and the draws of ``compute`` are part of the row.
    """
    check_seeds([seed, made_with])
    facts = {"checkpoint": checkpoint, "data": digest, "model": model.facts}
    about = _about(spec.shown(dataset), model, label, label, compute, made_with)
    return Weights(model, None, facts, about, seed)


def initial_weights(
    dataset: Dataset,
    data: RetrievalData,
    model: Model,
    label: str | None,
    seed: int,
    compute: Compute,
) -> Weights:
    """The weights that training would start from: a network as it is published, or a random one.

    A warning says that weights are random, unless the network is code of the user's own.

    Args:
        dataset: what they are measured on.
        data: its images.
        model: the network; it is built here.
        label: name of the model in tables; None: ``none (pretrained)``, ``none (untrained)`` if its
            weights are random, or ``none (as built)`` of a network that is the user's own code.
        seed: decides random weights and the targets of attacks.
        compute: its precision and draws are part of the row.

    Raises:
        UserError: the published weights are not available, or do not fit the network, or a random
            layer follows them.
    """
    from dmlbench.compute.randomness import global_seeds

    check_seeds([seed])
    trained = model.comes_trained
    if model.starts_trained and not trained:
        raise UserError(
            f"model {shown_model(model)}: a new layer with random weights follows the published "
            "ones: measure these as they are (head=none in the spec), or train both (dmlbench run)"
        )
    with global_seeds(derived_seed(seed, "init")):
        built = model.build(data.channels, data.size, initial=True)
    source = model.facts.get("source")  # of the user's own code, which may load weights itself
    state = "pretrained" if trained else "untrained" if source is None else "as built"
    if state == "untrained":
        warnings.warn(
            f"model {shown_model(model)}: its weights are random, because no checkpoint is named",
            stacklevel=2,
        )
    held = module_model(built, name=canonical_model(model.in_tables()))
    held = replace(held, made_by=source)
    name = label or f"none ({state})"
    # the spec says all else; a network of the user's own code may have any attribute
    digest = held.weights_digest if source is None else held.digest
    made_with = 0 if trained or _is_fixed(model, data, held, seed) else seed
    common = dataset, data.digest, held, digest, name
    return memory_weights(*common, seed, compute, made_with)


def _is_fixed(model: Model, data: RetrievalData, held: ModuleModel, seed: int) -> bool:
    """True if the code of the user's own builds the same weights by another seed than ``seed``."""
    from dmlbench.compute.randomness import global_seeds

    if seed == 0 or held.made_by is None:
        return False
    with global_seeds(derived_seed(0, "init")):
        other = module_model(model.build(data.channels, data.size, initial=True), name="other")
    return other.weights_digest == held.weights_digest


def _about(
    dataset: str,
    model: Model,
    defense: str,
    label: str,
    compute: Compute,
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
        precision=compute.precision,
        eot="" if compute.eot == 1 else str(compute.eot),
        suite="",
        queries="",
        attack="",
        attack_resolved="",
    )


def check_seeds(seeds: Iterable[int]) -> None:
    """UserError unless every seed is a whole number from 0 up."""
    for seed in seeds:
        check_whole("seed", seed, 0)
