"""The results folder of a call from Python: the user's, or one that is gone afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def results_folder(results: str | Path | None) -> Iterator[Path]:
    """``results`` as a path; for None an empty temporary folder that is deleted at the end."""
    if results is not None:
        yield Path(results)
        return
    with tempfile.TemporaryDirectory(prefix="dmlbench-") as folder:
        yield Path(folder)
