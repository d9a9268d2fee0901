"""Trained models on disk: a checkpoint with the weights, and a manifest that describes them.

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
    """The description of a trained model. Early versions left out the fields with a default.

    Attributes:
        schema: version of this record.
        checkpoint: name of the file with the weights.
        sha256: digest of that file, in hex.
        training_id: identity of the training.
        training: everything that decides the weights; ``training_id`` is its identity.
        dataset: spec of the data set.
        model: spec of the network.
        image_shape: channels and side of the images that it takes.
        defense: spec of the defense in short, ``hm``.
        resolved: spec of the defense with every value.
        label: the defense in the papers' notation.
        training_cost: forward and backward passes of a training step.
        parameters: number of parameters of the network.
        processes: number of processes that shared the training.
        history: loss and other means of each epoch; None for a mean of nothing.
        seconds: duration.
        started: seconds since 1970.
        provenance: code, libraries and machine that trained it.
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
        """The manifest in JSON types, as it is stored on disk."""
        found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return found


class _Versioned(msgspec.Struct):
    """A manifest of any version."""

    schema: int


def save_weights(path: Path, model: nn.Module) -> None:
    """Write the state dict of ``model`` as safetensors."""
    from safetensors.torch import save as to_bytes

    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_atomically(path, to_bytes(state))


def save(folder: Path, model: nn.Module, facts: Mapping[str, Any]) -> Manifest:
    """Write the weights, then the manifest: a model with a manifest is complete.

    Args:
        folder: folder of the model.
        model: the trained network.
        facts: the fields of the manifest except schema, checkpoint and sha256.
    """
    save_weights(folder / WEIGHTS, model)
    digest = file_sha256(folder / WEIGHTS)
    manifest = Manifest(schema=MANIFEST_SCHEMA, checkpoint=WEIGHTS, sha256=digest, **facts)
    write_json(folder / MANIFEST, manifest.as_json())
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a model's folder; None if there is none. The weights are not checked.

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
    """The manifest in a model's folder, after a check of the weights; None if there is none.

    Args:
        folder: folder of the model.
        training: facts of the training that the model must come from; None: of any.

    Raises:
        UserError: the manifest cannot be read, the checkpoint is missing or altered, or the
            model comes from another training.
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
    """Load the weights in a file into ``model``, whatever prefix their names have.

    Raises:
        UserError: the file is missing, unreadable, or of another network; the names and shapes that
            do not agree are listed.
    """
    from dmlbench.storage.weights import fitted, load_state, misfit, read_state

    state, own = read_state(path), model.state_dict()
    try:
        renamed, _ = fitted(state, own)
        load_state(model, renamed)
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        wrong = "" if isinstance(error, ValueError) else misfit(renamed, own)
        reason = wrong or " ".join(str(error).split())[:300]
        raise UserError(f"checkpoint {path} does not fit the model: {reason}") from None


def _remedy(folder: Path) -> str:
    return f"delete {folder} and run again to train it anew"
