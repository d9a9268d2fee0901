"""Checkpoints with a manifest: what the weights are, and what made them.

A trained model is a folder with ``checkpoint.safetensors`` and ``manifest.json``. The manifest
holds the SHA-256 of the weights, and a checkpoint that does not match it is refused: a flipped
bit loads without complaint otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from dmlbench.common.errors import UserError
from dmlbench.common.files import write_atomically, write_json
from dmlbench.common.hashing import file_sha256
from dmlbench.compute.provenance import Provenance

if TYPE_CHECKING:
    from torch import nn

WEIGHTS, MANIFEST = "checkpoint.safetensors", "manifest.json"
MANIFEST_SCHEMA = 1


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a trained model. Fields with a default are those that early versions left out.

    Attributes:
        schema: version of this record.
        checkpoint: name of the file with the weights.
        sha256: of that file.
        training_id: identity of the training.
        training: the facts of the training, which its identity is made of.
        dataset: spec of the data set.
        model: spec of the network.
        image_shape: channels and side of the images that it takes.
        defense: spec as a user would write it.
        resolved: spec of the defense with every value.
        label: the defense in the papers' notation.
        training_cost: forward and backward passes of a training step.
        parameters: numbers that the network has learned.
        processes: that shared the training.
        history: the losses and other means of each epoch; None where there was nothing to average.
        seconds: how long it took.
        started: seconds since 1970.
        provenance: what trained it.
    """

    schema: int
    checkpoint: str
    sha256: str
    training_id: str
    training: dict[str, Any]
    dataset: str
    model: str = ""
    image_shape: tuple[int, int] | msgspec.UnsetType = msgspec.UNSET
    defense: str
    resolved: str = ""
    label: str
    training_cost: int
    parameters: int
    processes: int = 1
    history: list[dict[str, float | None]]
    seconds: float
    started: float
    provenance: Provenance

    def as_json(self) -> dict[str, Any]:
        """The manifest in JSON types, as it is stored."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


class _Versioned(msgspec.Struct):
    """The one field of a manifest that every version has."""

    schema: int


def save(folder: Path, model: nn.Module, facts: Mapping[str, Any]) -> Manifest:
    """Write the weights, then the manifest (its presence says that the model is complete).

    Args:
        folder: where the model lies.
        model: the network.
        facts: the fields of the manifest but for its first three.
    """
    from safetensors.torch import save as to_bytes

    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_atomically(folder / WEIGHTS, to_bytes(state))
    digest = file_sha256(folder / WEIGHTS)
    manifest = Manifest(schema=MANIFEST_SCHEMA, checkpoint=WEIGHTS, sha256=digest, **facts)
    write_json(folder / MANIFEST, manifest.as_json())
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a model's folder; None if there is none. The weights are not looked at.

    Raises:
        UserError: it cannot be read.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
        schema = msgspec.json.decode(content, type=_Versioned).schema
        if schema == MANIFEST_SCHEMA:
            return msgspec.json.decode(content, type=Manifest)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {_remedy(folder)}") from None
    raise UserError(f"{path} has schema {schema}, this version reads {MANIFEST_SCHEMA}")


def verified_manifest(folder: Path, training: Mapping[str, Any] | None = None) -> Manifest | None:
    """The manifest of a complete model, its weights verified; None if there is no manifest.

    Args:
        folder: where the model lies.
        training: the facts of the training that should have made it, if they are known.

    Raises:
        UserError: the manifest cannot be read, the checkpoint is missing or altered, or the
            model was made by another training.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    if training is not None and manifest.training != training:
        raise UserError(f"{folder / MANIFEST} is of another training run: {_remedy(folder)}")
    weights = folder / manifest.checkpoint
    if not weights.is_file():
        raise UserError(f"{weights} is missing though its manifest is there: {_remedy(folder)}")
    if file_sha256(weights) != manifest.sha256:
        raise UserError(
            f"{weights} is not what its manifest says (SHA-256 differs: truncated or altered): "
            f"{_remedy(folder)}"
        )
    return manifest


def load_weights(path: Path, model: nn.Module) -> None:
    """Load the weights in a file (``dmlbench.storage.weights.read_state``) into ``model``.

    Raises:
        UserError: the file is missing, unreadable, or of another network.
    """
    from dmlbench.storage.weights import load_state, read_state

    state = read_state(path)
    try:
        load_state(model, state)
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = " ".join(str(error).split())
        raise UserError(f"checkpoint {path} does not fit the model: {lines[:300]}") from None


def _remedy(folder: Path) -> str:
    return f"delete {folder} and run again to train it anew"
