"""Reads only plain files, and writes atomically.

After a crash a file is either complete or not there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path, PurePath
from typing import IO, Any

from dmlbench.common.errors import UserError

ABANDONED_SECONDS = 2 * 24 * 3600  # adversarial images are written batch by batch, over hours


def open_file(path: Path) -> BufferedReader:
    """Open a file for reading. A pipe, a device or a folder is refused at once, never waited for.

    Raises:
        OSError: it is missing, unreadable, or no plain file.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a plain file", str(path))
    return os.fdopen(handle, "rb")


def read_file(path: Path) -> bytes:
    """The content of a plain file; raises what ``open_file`` raises."""
    with open_file(path) as file:
        return file.read()


def as_path(what: str, given: Any) -> Path:
    """The argument ``what`` of a call from Python as a path; UserError if it is none."""
    if not isinstance(given, str | os.PathLike) or "\0" in str(given):
        raise UserError(f"{what} must be a path, got {given!r}")
    return Path(given)


def path_or_none(what: str, given: Any) -> Path | None:
    """The same for an argument that may be None."""
    return None if given is None else as_path(what, given)


def is_folder(path: Path) -> bool:
    """True if there is a folder; false for a name that is too long, where ``is_dir`` raises."""
    try:
        return path.is_dir()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary file beside ``path``, flush it to disk, and rename it.

    A symbolic link stays one: the file that it points to is written.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    with atomic_file(path) as file:
        file.write(content)


def write_if_changed(path: Path, content: bytes) -> bool:
    """Write ``content`` atomically unless the file holds it already; True if it was written."""
    with contextlib.suppress(OSError):
        if read_file(path) == content:
            return False
    write_atomically(path, content)
    return True


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file beside ``path`` to write into, which becomes ``path`` at the end.

    If an exception leaves the ``with`` block, the temporary file is deleted and ``path`` is what
    it was before.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    temporary = None
    try:
        path = Path(os.path.realpath(path)) if path.is_symlink() else path
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def check_writable(folder: Path, flag: str) -> None:
    """Check that ``folder`` can be written to, before hours of training and not after them.

    Args:
        folder: is created if it does not exist.
        flag: the command line option that set the folder, for the message.

    Raises:
        UserError: it cannot be written to, or has a name that files of weights cannot have.
    """
    _check_name(folder, flag)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            pass
    except OSError as error:
        reason = "not a folder" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"{flag} {folder} cannot be written to: {reason}") from None


def check_may_write(folder: Path, flag: str) -> None:
    """Refuse what ``check_writable`` refuses, as far as that can be told without writing.

    Raises:
        UserError: it cannot be written to.
    """
    _check_name(folder, flag)
    reason: str | None = None
    for place in (folder.absolute(), *folder.absolute().parents):
        try:
            if not stat.S_ISDIR(place.stat().st_mode):
                reason = "not a folder"
            elif not os.access(place, os.W_OK | os.X_OK):
                reason = "no permission, or read-only"
            break
        except FileNotFoundError:  # it would be created
            continue
        except OSError as error:
            reason = error.strerror
            break
    if reason is not None:
        raise UserError(f"{flag} {folder} cannot be written to: {reason}")


def _check_name(folder: Path, flag: str) -> None:
    """UserError for a name that files of weights cannot have."""
    if str(folder).encode(errors="replace") != os.fsencode(folder):
        raise UserError(f"{flag} {folder} has letters that are no UTF-8: choose another name")


@contextlib.contextmanager
def locked(path: Path, say: Callable[[str], None], busy: str) -> Iterator[None]:
    """Hold a lock within a ``with`` block; ``busy`` is said if another process has it.

    None is held where none can be: on a disk without locks, or if its file is another user's.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{busy}; waiting for it")
        lock.acquire()
    except (OSError, NotImplementedError):
        pass  # the work is done all the same: without a lock two processes may do it at once
    try:
        yield
    finally:
        lock.release()


def remove_abandoned(folder: Path, written: Iterable[str]) -> None:
    """Delete temporary files of ``atomic_file`` that killed processes have left in ``folder``.

    A temporary file counts as abandoned two days after it was last written to. The time is that of
    the file system, because the clock of this machine may differ or jump.

    Args:
        folder: may hold files of others, which stay.
        written: patterns of the files that are written in it, ``cells/*.json``.
    """
    places = map(PurePath, written)
    patterns = [place.with_name(f".{place.name}.{'?' * 8}.tmp") for place in places]
    found = [path for pattern in patterns for path in folder.glob(str(pattern))]
    if not found:
        return
    with tempfile.NamedTemporaryFile(dir=folder) as probe:
        now = os.fstat(probe.fileno()).st_mtime
    for path in found:
        with contextlib.suppress(OSError):
            if now - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` to ``path`` as indented JSON, atomically."""
    write_atomically(path, json_bytes(value))


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Turn ``value`` into indented JSON and a newline; ValueError if a number is not finite."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # other systems cannot open a folder to flush it
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # this file system cannot flush a folder
            raise
    finally:
        os.close(handle)
