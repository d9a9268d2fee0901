"""Pixels of image files: how they are decoded, cropped for training and hashed into a digest."""

from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from dmlbench.datasets.base import RetrievalData, Split
from dmlbench.datasets.files.cache import Cache
from dmlbench.datasets.files.decoding import decode
from dmlbench.datasets.folder import Folder
from tests import trees


def test_images_are_decoded_at_eight_sevenths_of_the_size(tmp_path: Path) -> None:
    root, cache = trees.folder(tmp_path / "set", classes=4, each=2), Cache(tmp_path / "cache")
    data = Folder(root=str(root), size=56).load(None, cache)
    assert (data.size, data.test.images.shape[2:]) == (56, (64, 64))
    pixels = data.evaluation_pixels(data.test.batch(np.arange(1), torch.device("cpu")))
    reference = transforms.Compose(
        [transforms.Resize((64, 64)), transforms.CenterCrop((56, 56)), transforms.ToTensor()]
    )
    with Image.open(root / "class 002" / "image 000.jpg") as image:
        assert torch.equal(pixels[0], reference(image))
    whole = Folder(root=str(root)).load(None, cache)  # the same files at 224 lie beside it
    assert whole.test.images.shape[2:] == (256, 256)
    assert whole.digest != data.digest


def test_training_crops_and_flips_each_image_by_itself() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 3, 12, 12), dtype=np.uint8)
    split = Split(images, np.zeros(64, np.int64))
    data = RetrievalData(split, split, crop=8)
    batch = split.batch(np.arange(64), torch.device("cpu"))

    def draw(seed: int) -> torch.Tensor:
        return data.training_pixels(batch, torch.Generator().manual_seed(seed))

    seen = draw(0)
    assert seen.dtype == torch.float32
    assert torch.equal(seen, draw(0))
    assert not torch.equal(seen, draw(1))
    places = set()
    for pixels, image in zip(seen, batch, strict=True):
        cuts = {
            (y, x, flip): image[:, y : y + 8, x : x + 8].flip(2)
            if flip
            else image[:, y : y + 8, x : x + 8]
            for y, x, flip in product(range(5), range(5), (False, True))
        }
        (place,) = [key for key, cut in cuts.items() if torch.equal(cut / 255, pixels)]
        places.add(place)
    assert {y for y, _, _ in places} == {x for _, x, _ in places} == set(range(5))
    assert {flip for _, _, flip in places} == {False, True}


def test_small_images_are_seen_whole_and_nothing_is_drawn(tiny: RetrievalData) -> None:
    images = tiny.train.batch(np.arange(5), torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    seen = tiny.training_pixels(images, generator)
    assert torch.equal(seen, images / 255)
    assert torch.equal(seen, tiny.evaluation_pixels(images))
    assert torch.equal(generator.get_state(), before)
    assert tiny.size == 8


def test_the_digest_follows_pixels_labels_order_and_crop(tmp_path: Path) -> None:
    root = trees.folder(tmp_path / "a", classes=4, each=2)
    cache = Cache(tmp_path / "cache")
    data = Folder(root=str(root)).load(None, cache)
    elsewhere = trees.folder(tmp_path / "other place", classes=4, each=2)
    (elsewhere / "class 000").rename(elsewhere / "another name")  # sorts first, as before
    os.utime(elsewhere / "class 001" / "image 000.jpg", (0, 0))
    assert Folder(root=str(elsewhere)).load(None, cache).digest == data.digest
    digests = {data.digest, replace(data, crop=200).digest}
    assert data.test.hashes is not None
    digests.add(replace(data, test=replace(data.test, labels=data.test.labels[::-1])).digest)
    trees.write(root / "class 003" / "image 001.jpg", trees.jpeg(3, 77))
    digests.add(Folder(root=str(root)).load(None, cache).digest)
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("RGBA", "PNG"),
        ("P", "GIF"),
        ("1", "PNG"),
        ("LA", "PNG"),
        ("1", "TIFF"),
        ("CMYK", "TIFF"),
    ],
)
def test_every_8_bit_mode_is_read_as_rgb(tmp_path: Path, mode: str, format: str) -> None:
    original = trees.picture(1, 1)
    original.convert(mode).save(tmp_path / "x", format)
    pixels = decode((tmp_path / "x").read_bytes())
    with Image.open(tmp_path / "x") as image:
        assert image.mode == mode
        expected = transforms.Resize((256, 256))(image.convert("RGB"))
    assert np.array_equal(pixels, np.asarray(expected).transpose(2, 0, 1))


def test_a_large_image_is_read_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    trees.picture(1, 1).save(file, "PNG")
    width, height = Image.open(file).size
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", width * height - 1)
    assert decode(file.getvalue(), 8).shape == (3, 8, 8)  # a warning is an error


def deep_png(colour: int, channels: int) -> bytes:
    """A 9 x 9 PNG of 16 bits a channel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 16, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(9 * (1 + 9 * channels * 2))))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def deep_tiff() -> bytes:
    """A 9 x 9 TIFF of three channels of 16 bits."""
    size, directory = 9 * 9 * 3 * 2, 8 + 2 + 8 * 12 + 4
    of = {256: 9, 257: 9, 258: directory, 262: 2, 273: directory + 6, 277: 3, 278: 9, 279: size}
    entries = b"".join(
        struct.pack("<HHII", tag, 3 if tag == 258 else 4, 3 if tag == 258 else 1, value)
        for tag, value in of.items()
    )
    head = b"II*\0" + struct.pack("<IH", 8, len(of)) + entries + bytes(4)
    return head + struct.pack("<3H", 16, 16, 16) + bytes(size)


@pytest.mark.parametrize(
    ("content", "mode"),
    [
        (deep_png(0, 1), "I;16"),
        (deep_png(2, 3), "RGB"),
        (deep_png(4, 2), "RGBA"),
        (deep_png(6, 4), "RGBA"),
        (deep_tiff(), "RGB"),
    ],
)
def test_more_than_8_bits_are_refused_not_clipped(content: bytes, mode: str) -> None:
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == mode  # Pillow alone would read it
        image.load()
    with pytest.raises(ValueError, match=f"mode {mode} has more than 8 bits a channel"):
        decode(content)
