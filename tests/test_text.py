"""What of an error's message is shown."""

from __future__ import annotations

import pytest

from dmlbench.common.text import first_line, message_of


@pytest.mark.parametrize(
    ("error", "line", "message"),
    [
        (RuntimeError("one line"), "one line", "one line"),
        (RuntimeError("\nno memory.\nTried to\n"), "no memory.", "no memory. Tried to"),
        (AssertionError(), "AssertionError", "AssertionError"),
        (AssertionError(" \n"), "AssertionError", "AssertionError"),
    ],
)
def test_a_message_is_shown_in_one_line(error: Exception, line: str, message: str) -> None:
    """Of an error that has none its type is, or what the caller says."""
    assert (first_line(error), message_of(error)) == (line, message)
    said = line != "AssertionError"
    assert first_line(error, "damaged") == (line if said else "damaged")
    assert message_of(error, "damaged") == (message if said else "damaged")
