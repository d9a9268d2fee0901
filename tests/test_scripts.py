"""Scripts refuse what would lose committed rows, and know the code that they change."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from scripts import ablations, collect, mutations


@pytest.mark.parametrize("script", [collect.main, ablations.collect])
def test_a_folder_without_results_writes_nothing(script: click.Command, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("what is committed")
    targets = [str(rows)] * len(script.params[1:])
    for source, code in ((tmp_path / "absent", 2), (tmp_path, 1)):
        done = CliRunner().invoke(script, [str(source), *targets])
        assert done.exit_code == code, done.output
        assert "Error: " in done.output
    assert rows.read_text() == "what is committed"


def test_the_named_mutations_are_of_the_code_as_it_is() -> None:
    """An entry whose text is not there once is an error."""
    assert len(mutations.named()) == len(mutations.NAMED)
