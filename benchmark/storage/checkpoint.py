"""Trained models on disk: a checkpoint with the weights, and a manifest that describes them.

A trained model is a folder with ``checkpoint.safetensors`` and ``manifest.json``. The manifest
holds the SHA-256 of the weights and a checksum of itself, and a file that does not match is
refused: a flipped bit loads without complaint otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from dmlbench.common.errors import DamagedError, UserError
from dmlbench.common.files import open_file, read_file, write_atomically, write_json
from dmlbench.common.hashing import file_sha256, identity, sealed, unsealed
from dmlbench.common.text import message_of
from dmlbench.compute.provenance import Provenance
from dmlbench.storage.cell import Count, Seconds, Sha256

if TYPE_CHECKING:
    from torch import nn

WEIGHTS, MANIFEST = "checkpoint.safetensors", "manifest.json"
LOG = "log.jsonl"  # of the steps of a training, and its epochs
STATE = "state.pt"  # of a training that is not finished: a digest in hex, a newline, the state
MANIFEST_SCHEMA = 2
SEALED_SINCE = 2  # the schema from which on a manifest has a checksum; those before have none

FileName = Annotated[str, msgspec.Meta(pattern=r"^\w[\w.-]*$")]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class _Training(msgspec.Struct):
    """The facts of a training that are read from a manifest."""

    seed: Count
    recipe: dict[str, Any] = msgspec.field(default_factory=dict)


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
        history: loss and other means of each epoch; None for a mean of nothing. Early versions
            wrote ``spread`` for ``mean_cosine``.
        seconds: duration.
        started: seconds since 1970.
        provenance: code, libraries and machine that trained it.
    """

    schema: int
    checkpoint: FileName
    sha256: Sha256
    training_id: str
    training: dict[str, Any]
    dataset: str
    model: str = ""
    image_shape: tuple[Positive, Positive] | msgspec.UnsetType = msgspec.UNSET
    defense: str
    resolved: str = ""
    label: str
    training_cost: Count
    parameters: Count
    processes: Positive = 1
    history: list[dict[str, float | None]]
    seconds: Seconds
    started: Seconds
    provenance: Provenance

    def as_json(self) -> dict[str, Any]:
        """The manifest in JSON types, as it is stored on disk, with the checksum of its content."""
        found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return sealed(found) if self.schema >= SEALED_SINCE else found


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
        DamagedError: it is not what was written.
        UserError: it cannot be read, or a newer version wrote it.
    """
    path = folder / MANIFEST
    try:
        raw = unsealed(msgspec.json.decode(read_file(path)), path, MANIFEST_SCHEMA, SEALED_SINCE)
        manifest = msgspec.convert(raw, Manifest)
        if identity(manifest.training) != manifest.training_id:
            raise ValueError("its training is not that of its training_id")
        msgspec.convert(manifest.training, _Training)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({error})", _remedy(folder)) from None
    return manifest


def is_described(path: Path) -> bool:
    """True if ``path`` is a model's folder, its manifest, or a file beside a manifest of dmlbench.

    Other programs have a ``manifest.json``, too: it says nothing about a file of weights beside it.
    """
    if path.is_dir() or path.name == MANIFEST:
        return True
    manifest = path.parent / MANIFEST
    try:
        return manifest.is_file() and b'"training_id"' in read_file(manifest)
    except OSError:
        return True  # whoever reads it says why that cannot be


def verified_manifest(folder: Path, training: Mapping[str, Any] | None = None) -> Manifest | None:
    """The manifest in a model's folder, after a check of the weights; None if there is none.

    Args:
        folder: folder of the model.
        training: facts of the training that the model must come from; None: of any.

    Raises:
        DamagedError: the manifest or the checkpoint is not what was written, or is missing.
        UserError: a file cannot be read, or the model comes from another training.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    if training is not None and manifest.training != training:
        raise UserError(f"{folder / MANIFEST} is of another training run: {_remedy(folder)}")
    weights = folder / manifest.checkpoint
    try:
        found = file_sha256(weights)
    except FileNotFoundError:
        reason = f"{weights} is missing though its manifest is there"
        raise DamagedError(reason, _remedy(folder)) from None
    except OSError as error:
        raise UserError(f"{weights} cannot be read: {error.strerror}") from None
    if found != manifest.sha256:
        reason = "is not what its manifest says (SHA-256 differs: truncated or altered)"
        raise DamagedError(f"{weights} {reason}", _remedy(folder))
    return manifest


@dataclass(frozen=True)
class StoredWeights:
    """A file of weights.

    Attributes:
        path: the file.
        sha256: digest of its content.
        manifest: the manifest in its folder; None if there is none of this file.
    """

    path: Path
    sha256: str
    manifest: Manifest | None = field(compare=False)

    @property
    def name(self) -> str:
        """A name without its place: that of the model's folder, or the file's and a digest."""
        if self.manifest is not None:
            return self.path.absolute().parent.name
        return f"{self.path.stem}@{self.sha256[:8]}"


def stored_weights(path: Path) -> StoredWeights:
    """The weights in a file, or those of a trained model by its folder or manifest.

    Raises:
        UserError: they are not there, or are not what the manifest beside them says.
    """
    try:
        path.stat()
    except FileNotFoundError:
        pass  # is said below
    except (OSError, ValueError) as error:  # a name that is too long, or has a null byte
        raise UserError(f"checkpoint {path} cannot be read: {message_of(error)}") from None
    folder = path if path.is_dir() else path.parent
    manifest = verified_manifest(folder) if is_described(path) else None
    if manifest is None:
        refuse_state(folder / STATE if path.is_dir() or path.name in (MANIFEST, WEIGHTS) else path)
    if path.is_dir() and manifest is None:
        raise UserError(f"checkpoint {path} is a folder without a {MANIFEST}: name a file")
    if manifest is not None and (path.is_dir() or path.name == MANIFEST):
        return StoredWeights(folder / manifest.checkpoint, manifest.sha256, manifest)
    try:
        sha256 = file_sha256(path)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist") from None
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror}") from None
    same = manifest is not None and manifest.sha256 == sha256
    return StoredWeights(path, sha256, manifest if same else None)


def refuse_state(path: Path) -> None:
    """UserError for the state of an unfinished training of dmlbench, and for where it will be.

    In its first epoch a training has a log and neither a state nor weights yet. Other programs have
    files of these names, too, and a file that is not there is none.
    """
    if path.name != STATE:
        return
    try:
        with open_file(path) as file:
            unfinished = re.match(rb"[0-9a-f]{64}\n", file.read(65)) is not None
    except OSError:  # whoever reads it says why that cannot be
        path = path.parent
        begun = (path / LOG).is_file() and not (path / WEIGHTS).exists()
        unfinished = begun and _is_ours(path)
    if unfinished:
        raise UserError(
            f"checkpoint {path} is of a training that is not finished: run it again to finish it"
        )


def load_weights(path: Path, model: nn.Module, name: str = "") -> None:
    """Load the weights in a file into ``model``, whatever prefix their names have.

    Args:
        path: the file.
        model: the network.
        name: its spec, for the message of a file that does not fit.

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
        reason = wrong or message_of(error)[:300]
        if name:
            reason += "; another network is named with --model"
        of = f"the network {name}" if name else "the model"
        raise UserError(f"checkpoint {path} does not fit {of}: {reason}") from None


def _remedy(folder: Path) -> str:
    if _is_ours(folder):
        return f"delete {folder} and run again to train it anew"
    return f"restore the trained model in {folder} from a copy, or name another checkpoint"


def _is_ours(folder: Path) -> bool:
    """True if the name of a folder is that of a model in a results folder."""
    return folder.parent.name == "models" and bool(re.fullmatch("[0-9a-f]{16}", folder.name))
