"""The committed results say what their README says of them."""

from __future__ import annotations

import pytest

from benchmarks.reading import RESULTS, blocks

README = (RESULTS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["defenses", "documented", "attacks", "peer", "training"])
def test_the_tables_are_those_of_the_csvs(name: str) -> None:
    """Mend with: python -m benchmarks.reading."""
    assert blocks()[name] in README
