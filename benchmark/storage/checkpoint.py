"""Checkpoints with a manifest: what the weights are, and what made them.

A trained model is a folder with ``checkpoint.safetensors`` and ``manifest.json``. The manifest
holds the SHA-256 of the weights, and a checkpoint that does not match it is refused: a flipped
bit loads without complaint otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmlbench.common.errors import UserError
from dmlbench.common.files import write_atomically, write_json
from dmlbench.common.hashing import file_sha256

if TYPE_CHECKING:
    from torch import nn

WEIGHTS, MANIFEST = "checkpoint.safetensors", "manifest.json"
MANIFEST_SCHEMA = 1


def save(folder: Path, model: nn.Module, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write the weights, then the manifest (its presence says that the model is complete)."""
    from safetensors.torch import save as to_bytes

    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_atomically(folder / WEIGHTS, to_bytes(state))
    manifest = {
        "schema": MANIFEST_SCHEMA,
        "checkpoint": WEIGHTS,
        "sha256": file_sha256(folder / WEIGHTS),
        **facts,
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def read_manifest(folder: Path, training: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The manifest of a complete model, its checkpoint verified; None if there is no manifest.

    Args:
        folder: where the model lies.
        training: the facts of the training run that should have made it, if they are known.

    Raises:
        UserError: the manifest cannot be read, the checkpoint is missing or altered, or the
            model was made by another training run.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        schema, name, digest = manifest["schema"], manifest["checkpoint"], manifest["sha256"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): {_remedy(folder)}") from None
    if schema != MANIFEST_SCHEMA:
        raise UserError(f"{path} has schema {schema}, this version reads {MANIFEST_SCHEMA}")
    if training is not None and manifest.get("training") != training:
        raise UserError(f"{path} is of another training run: {_remedy(folder)}")
    weights = folder / name
    if not weights.is_file():
        raise UserError(f"{weights} is missing though its manifest is there: {_remedy(folder)}")
    if file_sha256(weights) != digest:
        raise UserError(
            f"{weights} is not what its manifest says (SHA-256 differs: truncated or altered): "
            f"{_remedy(folder)}"
        )
    return dict(manifest)


def load_weights(path: Path, model: nn.Module) -> None:
    """Load the weights in a file (``dmlbench.weights.read_state``) into ``model``.

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
