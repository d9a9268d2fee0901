"""Text from elsewhere (an error, a bundle, a CSV) in a form that a terminal and a CSV can show.

Also lists in a sentence.
"""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path

# control characters but a newline, marks of direction, line separators, halves of characters: they
# colour or move what a terminal shows, and a lone carriage return breaks a CSV
_CONTROL = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


_LIBRARIES = ("stdlib", "platstdlib", "purelib", "platlib")
_NOT_THE_USERS = (*(Path(sysconfig.get_path(one)) for one in _LIBRARIES), Path(__file__).parents[1])


def printable(text: str) -> str:
    """``text`` with a space for each control character but newlines."""
    return _CONTROL.sub(" ", text)


def one_line(text: str) -> str:
    """``text`` with a space for each control character."""
    return printable(text).replace("\n", " ")


def message_of(error: BaseException, instead: str = "") -> str:
    """The message of an error on one line; of one without a message ``instead``, or its type."""
    return " ".join(str(error).split()) or instead or type(error).__name__


def reason_of(error: BaseException) -> str:
    """The message of an error, behind its type if it would end the program: ``SystemExit 0``."""
    said = message_of(error)
    ends = not isinstance(error, Exception) and str(error)
    return f"{type(error).__name__} {said}" if ends else said


def raised_in(error: BaseException) -> str:
    """`` (nets.py, line 7)``: the last line of the user's own code on the way of an error.

    Empty if there is none: all of it is dmlbench's, Python's or an installed package's.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        place = Path(frame.filename)
        if place.is_file() and not any(place.is_relative_to(root) for root in _NOT_THE_USERS):
            return f" ({place.name}, line {frame.lineno})"
    return ""


def first_line(error: BaseException, instead: str = "") -> str:
    """The first line of an error's message; of one without a message ``instead``, or its type."""
    return (str(error).strip().splitlines() or [instead or type(error).__name__])[0]


def counted(number: int, one: str, many: str) -> str:
    """``1 file has``, or ``2 files have``: a number before one of two texts."""
    return f"{number:,} {one if number == 1 else many}"


def listed(items: Sequence[str], most: int = 3) -> str:
    """The first items: ``a, b, c and 4 more``."""
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
