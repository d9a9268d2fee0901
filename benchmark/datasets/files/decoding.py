"""Decoding of image files to square RGB images of one size, by worker processes."""

from __future__ import annotations

import io
import multiprocessing
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from dmlbench.common.files import read_file
from dmlbench.common.lazy import np
from dmlbench.common.processes import serve_parent
from dmlbench.common.text import message_of
from dmlbench.compute.device import processors

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmlbench.common.progress import Reporter

DECODER_VERSION = 1  # to be raised if the same file would give other pixels
SIDE = 256  # pixels, where nothing else is asked for
CHUNK = 32  # files a worker takes at a time

Chunk = tuple[
    Path, int, Sequence[str], int, Path | None
]  # root, first position, names, side, output


@dataclass(frozen=True)
class Seen:
    """A file that was read: SHA-256 of its bytes and of its pixels, or the problem with it."""

    file: bytes = b""
    pixels: bytes = b""
    problem: str = ""


def read_files(
    title: str,
    root: Path,
    names: Sequence[str],
    reporter: Reporter,
    output: Path | None,
    side: int,
) -> list[Seen]:
    """Read and decode the files ``names`` in ``root``, in order.

    Args:
        title: of the progress bar.
        root: the folder.
        names: paths below it.
        reporter: shows the progress.
        output: a file for the pixels, image after image; None: they are not kept.
        side: height and width that an image is resized to, in pixels.
    """
    chunks = [(root, i, names[i : i + CHUNK], side, output) for i in range(0, len(names), CHUNK)]
    found: list[Seen] = []
    with reporter.task(title, len(names)) as task:
        for part in _results(chunks):
            found += part
            task.advance(len(part))
    return found


def image_bytes(side: int) -> int:
    """The size in bytes of a decoded image of ``side`` x ``side`` pixels."""
    return 3 * side * side


def decode(content: bytes, side: int = SIDE) -> npt.NDArray[np.uint8]:
    """Decode an image of any size with 8 bits a channel to (3, side, side) RGB pixels.

    As in torchvision's loader and the published code, alpha is dropped, and a rotation in the EXIF
    data is ignored.

    Raises:
        ValueError: it is no image, or has more than 8 bits a channel, which RGB would clip or cut.
            Pillow tells so of grey images; of colours it is known for PNG and TIFF.
    """
    from PIL import Image, TiffImagePlugin, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's on odd transparency and large images
        try:
            opened = Image.open(io.BytesIO(content))
        except UnidentifiedImageError:
            raise ValueError("not an image that Pillow knows") from None
        with opened as image:
            bits = 8
            if image.format == "PNG":
                bits = content[24]  # in its first chunk
            elif isinstance(image, TiffImagePlugin.TiffImageFile):
                bits = max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
            if image.mode[0] in "IF" or bits > 8:
                raise ValueError(
                    f"mode {image.mode} has more than 8 bits a channel: convert it to 8 bits"
                )
            square = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def read_chunk(chunk: Chunk) -> list[Seen]:
    """Read the files of a chunk and write their pixels to its output; runs in a worker."""
    root, first, names, side, output = chunk
    found = []
    with nullcontext() if output is None else output.open("rb+") as file:
        for place, name in enumerate(names, start=first):
            try:
                content = read_file(root / name)
                pixels = decode(content, side).tobytes()
            except Exception as error:  # decoders raise many kinds on broken bytes
                reason = getattr(error, "strerror", None) or message_of(error)
                found.append(Seen(problem=reason))
                continue
            found.append(Seen(sha256(content).digest(), sha256(pixels).digest()))
            if file is not None:
                file.seek(place * image_bytes(side))
                file.write(pixels)
    return found


def _results(chunks: Sequence[Chunk]) -> Iterator[list[Seen]]:
    """The results of each chunk, in order; by worker processes if there is work for several."""
    workers = min(processors(), len(chunks))
    if workers < 2:
        yield from map(read_chunk, chunks)
        return
    # spawn, not fork: the parent may have threads and a GPU, which do not survive a fork
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=serve_parent)
    try:
        yield from pool.map(read_chunk, chunks)
    finally:
        pool.shutdown(cancel_futures=True)
