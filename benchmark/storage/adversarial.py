"""Adversarial images in .npz files: written in a stream, and read without trust.

An .npz file is a zip archive of arrays. Ours holds three:

index    (N,) int64: positions in the test split of the images that were perturbed
images   (N, C, H, W): float32 in [0, 1], or uint8 where 8 bits hold them exactly
perturbs ``query`` or ``candidate``: the part that the perturbed images play in the attack

``numpy.load`` reads them. Neither writing nor reading keeps more than a batch in memory.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dmlbench.common.errors import UserError
from dmlbench.common.files import atomic_file
from dmlbench.common.lazy import np
from dmlbench.common.text import message_of

if TYPE_CHECKING:
    import numpy.typing as npt

SPARE = 1 << 20  # bytes of a file beside its pixels
PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes, and unpacks in small parts
DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, NotImplementedError),
    *(struct.error, RuntimeError, ValueError, TypeError, SyntaxError, MemoryError, OverflowError),
    tokenize.TokenError,  # numpy reads the header of an array as Python
)


@contextmanager
def writer(
    path: Path, index: npt.NDArray[np.int64], perturbs: str
) -> Iterator[Callable[[npt.NDArray[Any]], None]]:
    """Write adversarial images to ``path``, batch by batch; the file appears when it is complete.

    Args:
        path: the .npz file.
        index: (N,) positions of the images, in the order in which they come.
        perturbs: ``query`` or ``candidate``.

    Yields:
        A function that takes the next images (B, C, H, W).

    Raises:
        UserError: the file cannot be written.
        ValueError: other than N images came.
    """
    written = 0
    with atomic_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in (("index", index), ("perturbs", np.array(perturbs))):
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        with archive.open(zipfile.ZipInfo("images.npy"), "w", force_zip64=True) as member:

            def add(images: npt.NDArray[Any]) -> None:
                nonlocal written
                if not written:
                    shape = (len(index), *images.shape[1:])
                    descr = np.lib.format.dtype_to_descr(images.dtype)
                    header = {"descr": descr, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(member, header)
                member.write(np.ascontiguousarray(images).tobytes())
                written += len(images)

            yield add
        if written != len(index):
            raise ValueError(f"{len(index)} images were announced, {written} came")


@dataclass
class AdversarialImages:
    """The images of an open file, not read yet.

    Attributes:
        sha256: of the file, in hex.
        index: (n,) int64, different positions in the test split.
        shape: (C, H, W) of an image.
    """

    sha256: str
    index: npt.NDArray[np.int64]
    shape: tuple[int, int, int]
    _path: Path
    _member: IO[bytes]
    _dtype: np.dtype[Any]

    def batches(self, rows: int) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """Yield positions and images (float32 in [0, 1]) of ``rows`` queries at a time, once.

        Raises:
            UserError: the file ends early or late, is damaged, or a pixel is not in [0, 1].
        """
        for first in range(0, len(self.index), rows):
            index = self.index[first : first + rows]
            with _named(self._path):
                pixels = _array(self._member, self._dtype, (len(index), *self.shape))
                if first + rows >= len(self.index):
                    _check_end(self._member)
            images = pixels.astype(np.float32)
            if self._dtype == np.uint8:
                images /= 255
            inside = ((images >= 0) & (images <= 1)).reshape(len(index), -1).all(1)
            if not inside.all():
                query = int(index[~inside][0])
                raise UserError(
                    f"{self._path}: the image of query {query} has a pixel that is not in [0, 1]"
                )
            yield index, images


@contextmanager
def reader(path: Path, queries: int, shape: tuple[int, int, int]) -> Iterator[AdversarialImages]:
    """Open a file of adversarial images that anyone may have made.

    Nothing in it is executed (no pickles), and nothing is read before its size is known to be that
    of images of the test split.

    Args:
        path: the .npz file.
        queries: number of images of the test split.
        shape: (C, H, W) of an image.

    Raises:
        UserError: it is not such a file; the message says why, and how to make one.
    """
    most = 2 * queries * (4 * math.prod(shape) + 8) + SPARE
    if not path.is_file():
        raise UserError(f"{path} does not exist, or is not a file")
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    with file:
        if (size := os.fstat(file.fileno()).st_size) > most:
            raise UserError(
                f"{path} has {size:,} bytes; {queries:,} images of {_shape(shape)} are at most "
                f"{most:,}"
            )
        with _named(path):
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            archive = zipfile.ZipFile(file)
        with archive:
            with _opened(archive, "index", path) as member, _named(path):
                index = _index(member, queries)
            with _opened(archive, "images", path) as member:
                with _named(path):
                    dtype, found = _header(member)
                    _check_images(dtype, found, len(index), shape)
                yield AdversarialImages(sha256, index, shape, path, member, dtype)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn whatever a broken file raises into one line that names the file."""
    try:
        yield
    except DAMAGED as error:
        said = message_of(error, "it is damaged")
        raise UserError(f"{path} is not an .npz file of adversarial images: {said}") from None


@contextmanager
def _opened(archive: zipfile.ZipFile, name: str, path: Path) -> Iterator[IO[bytes]]:
    """The array called ``name`` in the archive."""
    with _named(path):
        found = [info for info in archive.infolist() if info.filename == f"{name}.npy"]
        if len(found) != 1:
            how = "more than one array" if found else "no array"
            raise ValueError(
                f"it has {how} {name!r}; write numpy.savez(file, index=index, images=images)"
            )
        if found[0].compress_type not in PLAIN:
            raise ValueError(f"{name!r} is not compressed as numpy.savez_compressed does")
        member = archive.open(found[0])
    with member:
        yield member


def _header(member: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape of the array that begins here; ValueError if its elements are objects."""
    version = np.lib.format.read_magic(member)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"an array is written in version {version} of the format, not 1.0 or 2.0")
    shape, fortran, dtype = read(member)
    if fortran and len(shape) > 1:
        raise ValueError("an array is in Fortran order: use numpy.ascontiguousarray")
    return dtype, shape


def _array(member: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """The next elements of an array; ValueError if there are fewer."""
    size = math.prod(shape) * dtype.itemsize
    content = member.read(size)
    if len(content) != size:
        raise ValueError("it ends before its last image")
    return np.frombuffer(content, dtype).reshape(shape)


def _check_end(member: IO[bytes]) -> None:
    """ValueError unless the array ends here; the archive then compares its checksum."""
    if member.read(1):
        raise ValueError("an array is longer than its header says")


def _index(member: IO[bytes], queries: int) -> npt.NDArray[np.int64]:
    """The array of positions, checked."""
    dtype, shape = _header(member)
    if dtype.kind not in "iu" or len(shape) != 1:
        raise ValueError(f"index must be (n,) whole numbers, got {dtype} {shape}")
    if not 1 <= shape[0] <= queries:
        raise ValueError(f"index must have 1 to {queries:,} positions, got {shape[0]:,}")
    index = _array(member, dtype, shape)
    _check_end(member)
    if (outside := index[(index < 0) | (index >= queries)]).size:
        raise ValueError(f"there is no query {outside[0]}: the test split has {queries:,} images")
    values, counts = np.unique(index, return_counts=True)
    if (twice := values[counts > 1]).size:
        raise ValueError(f"query {twice[0]} is there {counts.max()} times; give one image of each")
    return index.astype(np.int64)


def _check_images(
    dtype: np.dtype[Any], found: tuple[int, ...], count: int, shape: tuple[int, int, int]
) -> None:
    """ValueError unless an array of that type and shape can be the images of ``count`` queries."""
    if dtype != np.uint8 and dtype.newbyteorder("=") != np.float32:
        raise ValueError(f"images must be float32 in [0, 1], or uint8, got {dtype}")
    if found != (count, *shape):
        raise ValueError(
            f"images must be {_shape((count, *shape))} as index and data set have it, got "
            f"{_shape(found)}"
        )


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
