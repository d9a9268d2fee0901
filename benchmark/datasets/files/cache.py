"""The cache of decoded images: resized once, kept on disk as one uint8 array, memory-mapped.

    <cache>/<content>.pixels   N x 3 x side x side bytes, named by the hash of the images' hashes
    <cache>/<stamp>.npz        the hashes of the images of a list of files (names, sizes, times)

The pixels are those of ``Resize((side, side))`` on a PIL image, as in the published training code:
bilinear, antialiased, the aspect ratio not kept. Files whose size or times changed are decoded
again (one of the times is that of the last change to the inode, which nobody can set: it differs
even between files that an archive gave the same name, size and time). The identity of the data
depends on the pixels alone, so a process compares them with their hashes when it first uses them,
and decodes again what is damaged.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import warnings
import zipfile
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dmlbench.common.errors import UserError
from dmlbench.common.files import check_writable, locked, read_file, write_atomically
from dmlbench.common.lazy import np
from dmlbench.common.progress import QuietReporter, Reporter
from dmlbench.common.text import listed
from dmlbench.datasets.files.decoding import (
    DECODER_VERSION,
    SIDE,
    Seen,
    image_bytes,
    read_files,
)
from dmlbench.datasets.files.places import HOME

if TYPE_CHECKING:
    import numpy.typing as npt


LONG = 4_000_000_000  # bytes whose check takes so long that its progress is shown
_SOUND: set[tuple[Path, int, int, int]] = set()  # files of pixels that this process has checked


@dataclass(frozen=True)
class Decoded:
    """Decoded images on disk.

    Attributes:
        images: (N, 3, side, side) uint8, a read-only memory map.
        hashes: (N, 32) uint8, SHA-256 of each image's pixels.
        files: (N, 32) uint8, SHA-256 of the file of each image.
    """

    images: npt.NDArray[np.uint8]
    hashes: npt.NDArray[np.uint8]
    files: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Cache:
    """The folder of decoded images.

    Attributes:
        folder: the folder; None: ``decoded`` in ``places.HOME``.
        reporter: shows the progress of decoding.
        side: height and width of the decoded images, in pixels.
        checked: another process of this run has compared the pixels with their hashes.
    """

    folder: Path | None = None
    reporter: Reporter = QuietReporter()
    side: int = SIDE
    checked: bool = False

    @property
    def place(self) -> Path:
        """The folder that is used."""
        return self.folder or HOME / "decoded"

    def decoded(self, title: str, root: Path, names: Sequence[str]) -> Decoded:
        """The images of the files ``names`` in ``root``, from the cache or decoded into it.

        If two processes need the same files, one decodes them and the other waits. Images that are
        damaged are decoded again, with a warning.

        Raises:
            UserError: a file is missing or cannot be decoded, or the disk is full.
        """
        key = stamp(root, names, self.side)
        found = self.find(key, len(names))
        if found is not None and self._is_sound(title, found):
            return found
        check_writable(self.place, "--cache")
        busy = f"another process is decoding {title}"
        with locked(self.place / f"{key}.lock", self.reporter.say, busy):
            found = self.find(key, len(names))
            if found is not None and not self._is_sound(title, found):
                path = self._pixels(found.hashes)
                warnings.warn(
                    f"the decoded images of {title} in {path} are damaged: decoding them again",
                    stacklevel=3,
                )
                found = None
            if found is None:
                self._build(key, title, root, names)
                found = self.find(key, len(names))
        assert found is not None
        return found

    def find(self, key: str, count: int) -> Decoded | None:
        """The ``count`` images cached under ``key``; None if they are not there or damaged."""
        try:
            content = io.BytesIO(read_file(self.place / f"{key}.npz"))
            with np.load(content, allow_pickle=False) as index:
                hashes, files = index["pixels"], index["files"]
            path = self._pixels(hashes)
            whole = hashes.shape == files.shape == (count, 32)
            if not whole or path.stat().st_size != count * image_bytes(self.side):
                return None
            images = np.memmap(path, np.uint8, "r", shape=(count, 3, self.side, self.side))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return Decoded(images, hashes, files)

    def _pixels(self, hashes: npt.NDArray[np.uint8]) -> Path:
        """The file of the pixels of images with these hashes."""
        return self.place / f"{hashlib.sha256(hashes.tobytes()).hexdigest()[:32]}.pixels"

    def _is_sound(self, title: str, found: Decoded) -> bool:
        """False if the pixels are not those of the hashes; a process reads them once for this."""
        path, image = self._pixels(found.hashes), bytearray(image_bytes(self.side))
        try:
            known = path.stat()
            state = path, known.st_ino, known.st_mtime_ns, known.st_ctime_ns
            if self.checked or state in _SOUND:
                return True
            shown = self.reporter if known.st_size > LONG else QuietReporter()
            bar = shown.task(f"check {title}", len(found.hashes))
            with path.open("rb") as file, bar as task:
                for expected in found.hashes:
                    file.readinto(image)
                    if hashlib.sha256(image).digest() != expected.tobytes():
                        return False
                    task.advance(1)
        except OSError:  # a bad sector
            return False
        _SOUND.add(state)
        return True

    def _build(self, key: str, title: str, root: Path, names: Sequence[str]) -> None:
        """Decode the files and store them under ``key``."""
        needed, free = len(names) * image_bytes(self.side), shutil.disk_usage(self.place).free
        if free < needed:
            raise UserError(
                f"decoding {title} takes {needed / 1e6:,.0f} MB in {self.place}, where "
                f"{free / 1e6:,.0f} MB are free: name another folder with --cache"
            )
        for stale in self.place.glob(f"{key}.*.partial"):  # left by a process that was killed
            stale.unlink()
        partial = self.place / f"{key}.{os.getpid()}.partial"
        try:
            with partial.open("wb") as file:
                file.truncate(needed)
            seen = read_files(f"decode {title}", root, names, self.reporter, partial, self.side)
            _refuse_unreadable(title, names, seen)
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            hashes, files = (
                np.frombuffer(b"".join(parts), np.uint8).reshape(len(names), 32)
                for parts in ([s.pixels for s in seen], [s.file for s in seen])
            )
            partial.replace(self._pixels(hashes))
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot write to --cache {self.place}: {reason}") from None
        except BrokenProcessPool:
            raise UserError(
                f"a process that decoded {title} died (out of memory? or called from a script "
                "without 'if __name__ == \"__main__\"'?): run again"
            ) from None
        finally:
            partial.unlink(missing_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, pixels=hashes, files=files)
        write_atomically(self.place / f"{key}.npz", buffer.getvalue())


def stamp(root: Path, names: Sequence[str], side: int = SIDE) -> str:
    """A hash of ``side`` and the files' names, sizes, times; UserError if a file is missing."""
    digest = hashlib.sha256(f"{DECODER_VERSION} {side}\n".encode())
    missing = []
    for name in names:
        try:
            found = (root / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            missing.append(name)
            continue
        except OSError as error:
            raise UserError(f"{root / name} cannot be read: {error.strerror}") from None
        times = f"{found.st_mtime_ns} {found.st_ctime_ns}"
        digest.update(os.fsencode(f"{name}\0{found.st_size} {times}\n"))
    if missing:
        raise UserError(f"{root} lacks {listed(missing)} of {len(names):,} files")
    return digest.hexdigest()[:32]


def _refuse_unreadable(title: str, names: Sequence[str], seen: Sequence[Seen]) -> None:
    bad = [f"{n} ({s.problem})" for n, s in zip(names, seen, strict=True) if s.problem]
    if bad:
        raise UserError(
            f"{title}: {listed(bad)} cannot be decoded: fetch the files again, or leave them out "
            "of a data set of your own"
        )
