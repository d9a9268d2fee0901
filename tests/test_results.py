"""The tables of results/README.md equal those written from the committed CSVs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dmlbench.metrics.ers import ers
from dmlbench.storage.store import Store
from scripts.facts import Findings
from scripts.reading import README, written
from tests.synthetic import FULL, model


def test_the_tables_are_those_of_the_csvs() -> None:
    """If it fails, write the tables again: python -m scripts.reading."""
    page = README.read_text(encoding="utf-8")
    assert written(page) == page


def test_a_number_changed_by_hand_is_found() -> None:
    page = README.read_text(encoding="utf-8")
    cell = page.index("| N/A[R] | ") + len("| N/A[R] | ")
    assert written(page[:cell] + "9" + page[cell:]) == page
    with pytest.raises(ValueError, match="needs one line"):
        written(page.replace("<!-- peer -->", ""))


def test_the_findings_of_a_results_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for one in model():
        store.put(one, {name: np.zeros(4) for name in one.metrics})
    assert Findings(tmp_path).ers("hm") == pytest.approx(ers(FULL))
