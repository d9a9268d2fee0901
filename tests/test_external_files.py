"""Files of adversarial images that nobody honest writes are refused in one line."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmlbench.common.errors import UserError
from dmlbench.storage import adversarial

# queries: 10 images of 1 x 2 x 2
INDEX, IMAGES = np.arange(4), np.full((4, 1, 2, 2), 0.5, np.float32)


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def zipped(compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def read(tmp_path: Path, content: bytes) -> list[Any]:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with adversarial.reader(path, 10, (1, 2, 2)) as file:
        return list(file.batches(3))


HOSTILE: dict[str, tuple[bytes, str]] = {
    "no archive": (b"x" * 100, "not an .npz file"),
    "empty": (b"", "not an .npz file"),
    "a plain array": (npy(IMAGES), "not an .npz file"),
    "no index": (npz(images=IMAGES), "no array 'index'"),
    "no images": (npz(index=INDEX, image=IMAGES), "no array 'images'"),
    "pickled index": (zipped(index=npy(np.array([{}] * 4))), "index must be"),
    "pickled images": (
        zipped(index=npy(INDEX), images=npy(np.full((4, 1, 2, 2), None))), "must be float32"),
    "float index": (npz(index=INDEX * 1.0, images=IMAGES), "index must be"),
    "wide index": (npz(index=INDEX[:, None], images=IMAGES), "index must be"),
    "no queries": (npz(index=INDEX[:0], images=IMAGES[:0]), "1 to 10 positions, got 0"),
    "too many": (npz(index=np.arange(11), images=IMAGES), "1 to 10 positions, got 11"),
    "negative": (npz(index=INDEX - 1, images=IMAGES), "there is no query -1"),
    "beyond": (npz(index=INDEX + 7, images=IMAGES), "there is no query 10"),
    "twice": (npz(index=np.array([1, 2, 3, 2]), images=IMAGES), "query 2 is there 2 times"),
    "float64": (npz(index=INDEX, images=IMAGES.astype(float)),
                "must be float32"),
    "other shape": (npz(index=INDEX, images=IMAGES[:, :, :, :1]), "4 x 1 x 2 x 2"),
    "fewer images": (npz(index=INDEX, images=IMAGES[:3]), "got 3 x 1 x 2 x 2"),
    "above 1": (npz(index=INDEX, images=IMAGES + np.float32(0.6)), "query 0 has a pixel"),
    "NaN": (npz(index=INDEX, images=IMAGES * np.float32(np.nan)), "query 0 has a pixel"),
    "Fortran order": (npz(index=INDEX, images=np.asfortranarray(
        np.random.rand(4, 1, 2, 2).astype(np.float32))), "Fortran order"),
    "too long": (zipped(index=npy(INDEX), images=npy(IMAGES) + b"x"), "longer than its header"),
    "too short": (zipped(index=npy(INDEX), images=npy(IMAGES)[:-3]), "ends before its last image"),
    "huge header": (zipped(index=header("(" * 60_000)), "not an .npz file"),
    "nested header": (zipped(index=header("(" * 5_000 + ")" * 5_000)), "not an .npz file"),
    "a bomb": (zipped(zipfile.ZIP_DEFLATED, index=npy(INDEX),
                      images=npy(IMAGES) + bytes(50_000_000)), "longer than its header"),
    "huge shape": (zipped(index=header(
        "{'descr': '<i8', 'fortran_order': False, 'shape': (10000000000000,), }")),
        "1 to 10 positions"),
    "bzip2": (zipped(zipfile.ZIP_BZIP2, index=npy(INDEX), images=npy(IMAGES)), "savez_compressed"),
    "large": (b"x" * 1_100_000, "at most"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_line(name: str, tmp_path: Path) -> None:
    content, words = HOSTILE[name]
    with pytest.raises(UserError) as caught:
        read(tmp_path, content)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "x.npz" in str(caught.value)


def test_a_flipped_or_missing_byte_is_a_line_or_an_image_of_the_same_shape(tmp_path: Path) -> None:
    chance, whole = random.Random(0), npz(index=INDEX, images=IMAGES)
    assert [index.tolist() for index, _ in read(tmp_path, whole)] == [[0, 1, 2], [3]]
    refusals = []
    for _ in range(400):
        content = bytearray(whole)
        place = chance.randrange(len(content))
        if chance.random() < 0.3:
            del content[place:]
        else:
            content[place] ^= 1 << chance.randrange(8)
        try:
            found = read(tmp_path, bytes(content))
        except UserError as error:
            refusals.append(str(error))
        else:
            assert sum(len(images) for _, images in found) == 4
    assert len(refusals) > 200
    assert not any("\n" in said for said in refusals)


def test_twice_the_same_array_is_refused(tmp_path: Path) -> None:
    content = zipped(index=npy(INDEX), inDex=npy(INDEX), images=npy(IMAGES))
    with pytest.raises(UserError, match="more than one array 'index'"):
        read(tmp_path, content.replace(b"inDex.npy", b"index.npy"))
