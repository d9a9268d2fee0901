"""Atomic files: whole or not there, whatever happens in between."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmlbench.common.errors import UserError

ABANDONED_SECONDS = 3600


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` by a temporary file beside it, fsync and rename.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def check_writable(folder: Path, flag: str) -> None:
    """UserError now rather than after an hour of training, if ``folder`` cannot be written to.

    Args:
        folder: made if it is not there.
        flag: the option that named it, for the message.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = "not a folder" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"{flag} {folder} cannot be written to: {reason}") from None


def remove_abandoned(folder: Path) -> None:
    """Delete the temporary files of writers that were killed, here and below.

    A file is taken as abandoned an hour after it was written, by the clock of the file system
    itself: the machine's may jump.
    """
    found = list(folder.rglob(".*.tmp"))
    if not found:
        return
    with tempfile.NamedTemporaryFile(dir=folder) as probe:
        now = os.fstat(probe.fileno()).st_mtime
    for path in found:
        with contextlib.suppress(OSError):
            if now - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomically(path, json_bytes(value))


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """``value`` as indented JSON and a newline; ValueError if a number in it is not finite."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # only there can a folder be opened and its entries flushed
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
