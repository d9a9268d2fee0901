"""The state of a training after an epoch, from which an interrupted one goes on."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dmlbench.common.errors import UserError
from dmlbench.common.files import read_file, write_atomically
from dmlbench.common.text import first_line
from dmlbench.storage.checkpoint import STATE

DAMAGED = "damaged-state.pt"


def write(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the file of a state: the SHA-256 in hex, a newline, what ``torch.save`` writes.

    Args:
        folder: folder of the model.
        content: tensors, numbers and texts; ``training_id`` is among them.
    """
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    saved = buffer.getvalue()
    digest = hashlib.sha256(saved).hexdigest()
    write_atomically(folder / STATE, digest.encode() + b"\n" + saved)


def read(
    folder: Path, training_id: str, warn: Callable[[str], None], sets_aside: bool
) -> Mapping[str, Any] | None:
    """Read the state of a training; None if there is none, or it is damaged or of another one.

    Args:
        folder: folder of the model.
        training_id: identity of the training.
        warn: called with a line if a state cannot be used.
        sets_aside: move a damaged file to ``DAMAGED``; of several processes one does.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    path = folder / STATE
    try:
        digest, _, saved = read_file(path).partition(b"\n")
        if hashlib.sha256(saved).hexdigest().encode() != digest:
            warn(f"{path} is damaged, moved to {DAMAGED}; training starts again")
            if sets_aside:
                path.replace(folder / DAMAGED)
            return None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        content: Mapping[str, Any] = torch.load(
            io.BytesIO(saved), map_location="cpu", weights_only=True
        )
        same = content["training_id"] == training_id
    except Exception as error:  # whatever a broken pickle raises
        raise misfit(folder, error) from None
    if not same:
        warn(f"{path} is of another training; it starts again")
    return content if same else None


def misfit(folder: Path, error: Exception) -> UserError:
    """An error that says that a state is not one of this training's code, and why."""
    reason = first_line(error)
    return UserError(f"{folder / STATE} does not fit this training ({reason}): delete it")
