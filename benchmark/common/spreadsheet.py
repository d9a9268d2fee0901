"""Cells of a CSV that a spreadsheet program shows as text and never computes as a formula."""

from __future__ import annotations

import re
from typing import Any

_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def guarded(value: Any) -> Any:
    """A value for a CSV: text that a spreadsheet would compute gets an apostrophe before it.

    That is text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return and does
    not consist of numbers. Text that begins with such apostrophes gets one more, so ``plain``
    gives back every text.
    """
    if isinstance(value, str) and _FORMULA.match(value) and not _is_numbers(value):
        return f"'{value}"
    return value


def plain(text: str) -> str:
    """The text that ``guarded`` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _is_numbers(text: str) -> bool:
    try:
        return bool([float(part) for part in text.split(" ")])
    except ValueError:
        return False
