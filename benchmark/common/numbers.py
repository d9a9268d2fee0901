"""The largest whole number, and the check of one that a caller gives."""

from __future__ import annotations

from dmlbench.common.errors import UserError

LARGEST = 2**63 - 1
"""The largest whole number that is accepted anywhere: the largest signed integer of 64 bits."""


def check_whole(name: str, value: object, least: int) -> None:
    """UserError unless ``value``, called ``name``, is a whole number, ``least`` to ``LARGEST``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name} must be at least {least} and a whole number, got {value!r}")
    if value > LARGEST:
        raise UserError(f"{name} must be below 2**63")
