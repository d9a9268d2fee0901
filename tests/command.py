"""Commands of the tests of the command line, and the form of a refusal."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd

Run = Callable[..., "subprocess.CompletedProcess[str]"]


NONE = ("run", "--dataset", "tiny", "--defense", "none", "--attack", "ca+", "--recipe", "epochs=1")
FIRST = ("run", "--dataset", "tiny", "--defense", "hm", "--attack", "ca+")


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One line on standard error, exit code 2, no traceback."""
    lines = [x for x in done.stderr.strip().splitlines() if "plugin attack" not in x]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def metrics(folder: Path) -> pd.DataFrame:
    """The tidy CSV without what may differ between runs: times."""
    return pd.read_csv(folder / "results" / "results.csv").drop(columns=["started", "seconds"])
