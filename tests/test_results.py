"""The committed results say what their README says of them."""

from __future__ import annotations

import pytest

from benchmarks.reading import README, written


def test_the_tables_are_those_of_the_csvs() -> None:
    """Mend with: python -m benchmarks.reading."""
    page = README.read_text(encoding="utf-8")
    assert written(page) == page


def test_a_number_changed_by_hand_is_found() -> None:
    page = README.read_text(encoding="utf-8")
    cell = page.index("| N/A[R] | ") + len("| N/A[R] | ")
    assert written(page[:cell] + "9" + page[cell:]) == page
    with pytest.raises(ValueError, match="needs one line"):
        written(page.replace("<!-- peer -->", ""))
