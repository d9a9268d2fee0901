"""Hashes: the identity of facts that change a number, and the checksum of a stored record.

Both are SHA-256 over canonical JSON: sorted keys, no spaces, exact floats. A sealed record holds
the checksum of all else that it holds, so a changed letter or digit is found. The checksum is the
same however the record is laid out in its file, or whether it lies in a larger one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmlbench.common.errors import UserError
from dmlbench.common.files import open_file

IDENTITY_VERSION = 1
CHECKSUM = "checksum"


def identity(facts: Mapping[str, Any]) -> str:
    """Hash ``facts`` to 16 hex digits: SHA-256 of canonical JSON (sorted keys, exact floats).

    A planned cell and a stored one are the same if and only if these digits are.
    """
    return content_sha256({"identity_version": IDENTITY_VERSION, **facts})[:16]


def content_sha256(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record of JSON types, as 64 hex digits; ValueError if a number is not finite."""
    text = json.dumps(
        record, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the checksum of its content as the last key."""
    return {**record, CHECKSUM: content_sha256(record)}


def unsealed(record: Any, place: Path | str, newest: int, since: int = 1) -> dict[str, Any]:
    """The content of a sealed record.

    Args:
        record: the record as it was read.
        place: where it was read from, for errors.
        newest: the newest schema that this version reads.
        since: the schema from which on records have a checksum.

    Raises:
        UserError: a newer version wrote it.
        ValueError: it has no schema, or another content than when it was sealed.
    """
    schema = record.get("schema") if isinstance(record, Mapping) else None
    if not isinstance(schema, int) or schema < 1:
        raise ValueError("it has no schema")
    content = dict(record)
    if schema >= since:
        checksum = content.pop(CHECKSUM, None)
        if checksum != content_sha256(content):
            raise ValueError("its checksum is not that of its content")
    if schema > newest:
        raise UserError(
            f"{place} has schema {schema}, this version reads up to {newest}: update dmlbench"
        )
    return content


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of the content of a file, as 64 hex digits."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def derived_seed(*parts: int | str) -> int:
    """Derive a 63-bit seed for one purpose, e.g. ``derived_seed(seed, "epoch", 3)``."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
