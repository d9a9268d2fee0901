"""The check of a whole number that a caller gives."""

from __future__ import annotations

from dmlbench.common.errors import UserError


def check_whole(name: str, value: object, least: int) -> None:
    """UserError unless ``value``, which is called ``name``, is a whole number from ``least`` up."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name} must be at least {least} and a whole number, got {value!r}")
