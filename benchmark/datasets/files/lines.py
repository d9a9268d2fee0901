"""Lists of a data set: text files with an entry in each line."""

from __future__ import annotations

from pathlib import Path

from dmlbench.common.errors import UserError
from dmlbench.common.files import read_file


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """The number and the text of each line of a text file that is not empty.

    Raises:
        UserError: the file cannot be read, or is no text.
    """
    try:
        lines = read_file(path).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): the data set needs this list"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file") from None
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
