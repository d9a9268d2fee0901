"""The folder for data sets, and torchvision's downloads into it."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path

from dmlbench.common.errors import UserError
from dmlbench.common.files import is_folder
from dmlbench.common.text import message_of


def home() -> Path:
    """The home folder; the working folder of a user that has none, as in some containers."""
    try:
        return Path.home()
    except RuntimeError:
        return Path()


HOME = home() / ".cache" / "dmlbench"
"""The folder for data sets if the user names none."""


def existing(data_root: Path | None) -> Path:
    """The folder that the user named, else ``HOME``; UserError if a named one is not there."""
    if data_root is not None and not is_folder(data_root):
        raise UserError(f"--data-root {data_root} is not a folder")
    return data_root or HOME


def torchvision_download(dataset: str, name: str, root: Path, source: str) -> None:
    """Have torchvision download a data set into ``root``; progress goes to standard error.

    Args:
        dataset: the class in ``torchvision.datasets``, which checks what it downloads by MD5.
        name: the data set's name in dmlbench, for the error.
        root: the folder.
        source: in words, where else to get the files, for the error.

    Raises:
        UserError: the host cannot be reached, or serves something else.
    """
    import torchvision.datasets

    try:
        with redirect_stdout(sys.stderr):
            getattr(torchvision.datasets, dataset)(str(root), download=True)
    except (OSError, RuntimeError) as error:
        reason = message_of(error)
        raise UserError(
            f"{name} is not in {root} and cannot be downloaded ({reason}): {source}"
        ) from None
