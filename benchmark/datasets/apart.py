"""Checks of data sets whose queries and gallery are apart, and the files that list answers.

A list of answers has a line a pair, ``GRADE QUERY ITEM``, separated by tabs (or by blanks, where no
path has one). Grades are those of revisited Oxford and Paris (Radenovic et al., CVPR 2018):

    grade       level=easy  level=medium  level=hard
    positive    answer      answer        answer
    easy        answer      answer        junk
    hard        junk        answer        answer
    junk        junk        junk          junk

Junk is left out of the ranking; everything that is not listed is wrong.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dmlbench.common.errors import UserError
from dmlbench.common.files import read_file
from dmlbench.common.lazy import np
from dmlbench.datasets.base import Answers, RetrievalData, Split
from dmlbench.datasets.files.cache import listed

if TYPE_CHECKING:
    import numpy.typing as npt

GRADES = ("positive", "easy", "hard", "junk")
LEVELS = {
    "easy": ("positive", "easy"),
    "medium": ("positive", "easy", "hard"),
    "hard": ("positive", "hard"),
}


def check_apart(name: str, data: RetrievalData) -> None:
    """Look at a data set whose gallery is apart, and warn of what changes the numbers.

    Raises:
        UserError: it has no query, no gallery, or no query has an answer.
    """
    queries, gallery = data.test, data.searched
    for what, split in (("query", queries), ("gallery", gallery)):
        if not len(split):
            raise UserError(f"{name}: there is no {what} image, so there is nothing to search")
    answers = data.relevance().answers
    without = int((answers == 0).sum())
    if without == len(queries):
        raise UserError(
            f"{name}: no query has an answer in the gallery: the classes of both must have the "
            "same names, or a list must name the answers"
        )
    if without:
        warnings.warn(
            f"{name}: {without} of {len(queries)} queries have no answer in the gallery: they are "
            "attacked, and left out of R@K, mAP and what follows from them",
            stacklevel=4,
        )
    shared = len(_hashes(queries) & _hashes(gallery))
    if shared:
        warnings.warn(
            f"{name}: {shared} images are both query and gallery image, and a query that sees "
            "itself finds itself: leave them out, or give them a source",
            stacklevel=4,
        )


def _hashes(split: Split) -> set[bytes]:
    if split.hashes is not None:
        return {row.tobytes() for row in split.hashes}
    return {np.ascontiguousarray(image).tobytes() for image in split.images}


def read_answers(path: Path, queries: Sequence[str], items: Sequence[str], level: str) -> Answers:
    """The answers that a file lists.

    Args:
        path: the file.
        queries: name of each query, by its number.
        items: name of each gallery image, by its position.
        level: easy, medium or hard.

    Raises:
        UserError: the file cannot be read, a line is malformed, an image is not there, or a query
            is in no line.
    """
    number, place = _places(queries), _places(items)
    found: list[list[list[int]]] = [[[] for _ in queries] for _ in ("positives", "junk")]
    named = set()
    for line, (grade, query, item) in _rows(path, 3, "GRADE QUERY ITEM"):
        if grade not in GRADES:
            raise UserError(
                f"{path}, line {line}: the grade {grade!r} is none of {', '.join(GRADES)}"
            )
        for what, known, key in (("query", number, query), ("gallery", place, item)):
            if key not in known:
                raise UserError(
                    f"{path}, line {line}: {key} is not among the {what} images, which are named "
                    f"by their paths in the {what} folder, such as {next(iter(known))}"
                )
        junk = grade not in LEVELS[level]
        found[junk][number[query]].append(place[item])
        named.add(query)
    if missing := [name for name in queries if name not in named]:
        raise UserError(
            f"{path} has no line for {len(missing)} queries: {listed(missing)}; name their "
            "answers, or take them out of the query folder"
        )
    positives, junk_of = (tuple(tuple(sorted(set(one))) for one in part) for part in found)
    return Answers(positives, junk_of)


def read_sources(path: Path, names: Sequence[str]) -> list[str]:
    """The source of each image of ``names``, from a file whose lines are ``SOURCE IMAGE``.

    Raises:
        UserError: the file cannot be read, a line is malformed, or an image is in no line.
    """
    source: Mapping[str, str] = {image: one for _, (one, image) in _rows(path, 2, "SOURCE IMAGE")}
    if missing := [name for name in names if name not in source]:
        raise UserError(f"{path} has no source for {len(missing)} images: {listed(missing)}")
    return [source[name] for name in names]


def numbered(*parts: Sequence[str]) -> list[npt.NDArray[np.int64]]:
    """Words as numbers from 0, the same word by the same number in all parts."""
    known = {word: n for n, word in enumerate(sorted({word for part in parts for word in part}))}
    return [np.array([known[word] for word in part], np.int64) for part in parts]


def _places(names: Sequence[str]) -> dict[str, int]:
    return {name: place for place, name in enumerate(names)}


def _rows(path: Path, columns: int, form: str) -> list[tuple[int, list[str]]]:
    """Number and words of each line of a text file, split at tabs, or at blanks if it has none."""
    try:
        lines = read_file(path).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        words = line.strip().split("\t") if "\t" in line else line.split(maxsplit=columns - 1)
        if len(words) != columns:
            raise UserError(f"{path}, line {number}: expected '{form}', got {line!r}")
        rows.append((number, words))
    return rows
