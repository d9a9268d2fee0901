"""The file of a submission: a zip with a small results folder, and ``bundle.json`` that seals it.

    bundle.json                       the record ``Bundle``: all else in the file, by SHA-256
    results.csv                       the rows, as ``dmlbench run`` exports them
    cells/ID.json, cells/ID.parquet   the cells, and the outcome of each query
    models/ID/manifest.json           the description of the training, if there is one
    models/ID/checkpoint.safetensors  the weights, unless the record has their address

Anyone may have made a bundle. Nothing in it is executed, no name in it becomes a path unless it is
one of the above, and no member is unpacked beyond the size that its kind may have.
"""

from __future__ import annotations

import re
import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Annotated, Literal

import msgspec

from dmlbench.common.errors import UserError
from dmlbench.common.files import atomic_file, json_bytes, open_file, read_file
from dmlbench.common.hashing import file_sha256, sealed, unsealed
from dmlbench.common.text import message_of
from dmlbench.compute.provenance import Provenance
from dmlbench.storage.adversarial import DAMAGED
from dmlbench.storage.cell import Sha256
from dmlbench.storage.checkpoint import MANIFEST, WEIGHTS

SCHEMA: Literal[1] = 1
RECORD, ROWS = "bundle.json", "results.csv"
MODEL = r"models/[0-9a-f]{16}"
MOST_WEIGHTS = 1 << 33  # bytes, in the bundle or at an address
LARGEST = {  # kind of member -> the most bytes
    re.escape(RECORD): 1 << 20,
    re.escape(ROWS): 1 << 26,
    r"cells/[0-9a-f]{16}\.json": 1 << 22,
    r"cells/[0-9a-f]{16}\.parquet": 1 << 26,
    rf"{MODEL}/{re.escape(MANIFEST)}": 1 << 22,
    rf"{MODEL}/{re.escape(WEIGHTS)}": MOST_WEIGHTS,
}
PACKED = (".json", ".csv")  # these are compressed; all else is stored, so a bundle has its size
MOST_MEMBERS, MOST_PACKED = 2000, 1 << 28  # files; bytes of the compressed ones, unpacked
PIECE = 1 << 20

Text = Annotated[str, msgspec.Meta(max_length=300, pattern=r"^[^\x00-\x1f\x7f-\x9f]*\Z")]
Link = Annotated[str, msgspec.Meta(max_length=500, pattern=r"^(|https?://\S+)\Z")]
Address = Annotated[str, msgspec.Meta(max_length=500, pattern=r"^(|https://\S+)\Z")]


class Bundle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The record ``bundle.json``. It is stored with the checksum of its content.

    Attributes:
        schema: version of this record.
        by: name of who hands it in.
        link: address of a paper or of code; may be empty.
        protocol: ``closed``: the published recipe and suites, unchanged; else ``open``.
        changes: what differs from them, a sentence each; empty if the protocol is closed.
        dataset: spec of the data set.
        data: digest of its content.
        checkpoint: SHA-256 of the weights.
        weights: address of the weights (https); empty: they are in the bundle.
        cells: identities of the cells.
        files: name of each other member -> its SHA-256.
        made: environment in which the bundle was packed; each cell has its own.
    """

    schema: Literal[1]
    by: Annotated[Text, msgspec.Meta(min_length=1)]
    link: Link
    protocol: Literal["closed", "open"]
    changes: tuple[Text, ...]
    dataset: Text
    data: Sha256
    checkpoint: Sha256
    weights: Address
    cells: tuple[Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")], ...]
    files: dict[str, Sha256]
    made: Provenance


def write(path: Path, bundle: Bundle, folder: Path) -> None:
    """Write a bundle; the file appears when it is complete.

    Args:
        path: the zip file.
        bundle: its record; ``files`` are those of the folder that go in.
        folder: a results folder.

    Raises:
        UserError: the file cannot be written.
    """
    record = json_bytes(sealed(msgspec.to_builtins(bundle)))
    with atomic_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name in (RECORD, *sorted(bundle.files)):
            info = zipfile.ZipInfo(name)  # without a time: the same content, the same bytes
            if name.endswith(PACKED):
                info.compress_type = zipfile.ZIP_DEFLATED
            content = record if name == RECORD else read_file(folder / name)
            archive.writestr(info, content)


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Name of each file in ``folder`` -> its SHA-256."""
    return {name: file_sha256(folder / name) for name in sorted(names)}


def unpack(path: Path, folder: Path) -> Bundle:
    """Unpack a bundle that anyone may have made into an empty folder.

    Raises:
        UserError: it is none, or its content is not what its record says; the message says how.
    """
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            members = _members(archive, path.stat().st_size)
            for info in members:
                _copy(archive, info, folder)
        record = msgspec.json.decode(read_file(folder / RECORD))
        bundle = msgspec.convert(unsealed(record, f"{RECORD} in {path}", SCHEMA), Bundle)
    except FileNotFoundError:
        raise UserError(f"bundle {path} does not exist") from None
    except (*DAMAGED, RecursionError) as error:
        if isinstance(error, OSError) and not isinstance(error, zipfile.BadZipFile):
            said = error.strerror or str(error)
        else:
            said = message_of(error, "it is damaged")
        raise UserError(f"{path} is no bundle of 'dmlbench submit': {said}") from None
    there = {info.filename for info in members} - {RECORD}
    if there != bundle.files.keys():
        odd = sorted(there ^ bundle.files.keys())[0]
        raise UserError(f"{path}: {odd!r} is not both in the file and in its record")
    for name, sha256 in bundle.files.items():
        if file_sha256(folder / name) != sha256:
            raise UserError(f"{path}: {name} is not what its record says (SHA-256 differs)")
    return bundle


def _members(archive: zipfile.ZipFile, size: int) -> list[zipfile.ZipInfo]:
    """The members, each of a kind that belongs into a bundle; ValueError for any other."""
    found = archive.infolist()
    if len(found) > MOST_MEMBERS:
        raise ValueError(f"it has {len(found):,} members, more than {MOST_MEMBERS:,}")
    if len({info.filename for info in found}) < len(found):
        raise ValueError("two members have one name")
    for info in found:
        name = info.filename
        most = next((most for kind, most in LARGEST.items() if re.fullmatch(kind, name)), None)
        if most is None:
            raise ValueError(f"{name[:100]!r} does not belong into a bundle")
        if info.file_size > most:
            raise ValueError(f"{name} has {info.file_size:,} bytes, more than {most:,}")
        mode = info.external_attr >> 16
        if info.flag_bits & 1 or (mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG)):
            raise ValueError(f"{name} is encrypted, or is no plain file")
        packed = zipfile.ZIP_DEFLATED if name.endswith(PACKED) else zipfile.ZIP_STORED
        if info.compress_type not in (packed, zipfile.ZIP_STORED):
            raise ValueError(f"{name} is compressed otherwise than 'dmlbench submit' does")
    if RECORD not in {info.filename for info in found}:
        raise ValueError(f"it has no {RECORD}")
    if sum(info.compress_size for info in found) > size:
        raise ValueError("its members overlap")
    if sum(info.file_size for info in found if info.compress_type) > MOST_PACKED:
        raise ValueError("it unpacks to too much")
    return found


def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, folder: Path) -> None:
    """Write a member to its place, never more bytes than it announces."""
    place = folder / info.filename
    place.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(info) as member, place.open("xb") as file:
        _stream(member, file, info.file_size)


def _stream(member: IO[bytes], file: IO[bytes], size: int) -> None:
    left = size
    while piece := member.read(min(PIECE, left + 1)):
        left -= len(piece)
        if left < 0:
            raise ValueError("a member is longer than it says")
        file.write(piece)


def checked(bundle: Bundle) -> Bundle:
    """The record, if it can be read again; UserError if a text in it is too long or no address."""
    try:
        return msgspec.convert(msgspec.to_builtins(bundle), Bundle)
    except msgspec.ValidationError as error:
        raise UserError(f"the bundle cannot be written: {error}") from None
