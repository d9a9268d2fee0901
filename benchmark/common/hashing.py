"""Identities: a versioned hash over everything that changes a number, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

IDENTITY_VERSION = 1


def identity(facts: Mapping[str, Any]) -> str:
    """16 hex digits of the SHA-256 of ``facts`` in canonical JSON (sorted keys, exact floats).

    Planned cells and stored rows are compared by this value alone.
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
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed for one purpose, e.g. ``derived_seed(seed, "epoch", 3)``."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
