"""Text from elsewhere (an error, a bundle, a CSV) in a form that a terminal and a CSV can show."""

from __future__ import annotations

import re

# control characters but a newline, marks of direction, line separators, halves of characters: they
# colour or move what a terminal shows, and a lone carriage return breaks a CSV
_CONTROL = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """``text`` with a space for each control character but newlines."""
    return _CONTROL.sub(" ", text)


def one_line(text: str) -> str:
    """``text`` with a space for each control character."""
    return printable(text).replace("\n", " ")
