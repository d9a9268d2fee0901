"""Identities: a hash over all facts that change a number, and over nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

IDENTITY_VERSION = 1


def identity(facts: Mapping[str, Any]) -> str:
    """Hash ``facts`` to 16 hex digits: SHA-256 of canonical JSON (sorted keys, exact floats).

    A planned cell and a stored one are the same if and only if these digits are.
    """
    text = json.dumps(
        {"identity_version": IDENTITY_VERSION, **facts},
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
        allow_nan=False,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of the content of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def derived_seed(*parts: int | str) -> int:
    """Derive a 63-bit seed for one purpose, e.g. ``derived_seed(seed, "epoch", 3)``."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
