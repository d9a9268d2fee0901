"""The tables of the pages in results/ equal those written from the committed CSVs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dmlbench.metrics.ers import ers
from dmlbench.storage.store import Store
from scripts.facts import Findings
from scripts.reading import pages, written
from tests.synthetic import FULL, model


def test_the_tables_are_those_of_the_csvs() -> None:
    """If it fails, write the tables again: python -m scripts.reading."""
    assert written(pages()) == pages()


def test_a_number_changed_by_hand_is_found() -> None:
    before = pages()
    path, page = next((path, page) for path, page in before.items() if "<!-- order -->" in page)
    cell = page.index("| auto | ", page.index("<!-- order -->")) + len("| auto | ")
    changed = before | {path: page[:cell] + "9" + page[cell:]}
    assert written(changed) == before
    for wrong in ("", "<!-- order -->\n\n<!-- order -->", "<!-- none -->"):
        with pytest.raises(ValueError, match="needs one line"):
            written(before | {path: page.replace("<!-- order -->", wrong)})


def test_the_findings_of_a_results_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for one in model():
        store.put(one, {name: np.zeros(4) for name in one.metrics})
    assert Findings(tmp_path).ers("hm") == pytest.approx(ers(FULL))
