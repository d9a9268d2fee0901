"""Lists of a data set: text files with an entry in each line."""

from __future__ import annotations

import re
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


def numbered_table(path: Path, form: str) -> list[tuple[int, list[str]]]:
    """The number of each line of a text file that is not empty, and its words.

    Words are separated by tabs, or by blanks in a line that has no tab; the last word may have
    blanks then.

    Args:
        path: the file.
        form: the words of a line by their names, such as ``SOURCE IMAGE``.

    Raises:
        UserError: the file cannot be read, or a line has fewer or more words.
    """
    columns, rows = len(form.split()), []
    for number, line in numbered_lines(path):
        text = line.strip()
        found = re.split("\t+", text) if "\t" in text else text.split(maxsplit=columns - 1)
        words = [word.strip() for word in found]
        if len(words) != columns:
            raise UserError(
                f"{path}, line {number}: expected '{form}', separated by tabs (or blanks, where no "
                f"name has one), got {line!r}"
            )
        rows.append((number, words))
    return rows
