"""Checks of queries and gallery, mostly where they are apart, and the files that list answers.

A list of answers has one line per pair, ``GRADE QUERY ITEM``, separated by tabs (or by blanks,
where no path has one). Grades are those of revisited Oxford and Paris (Radenovic et al., CVPR
2018):

    grade       level=easy  level=medium  level=hard
    positive    answer      answer        answer
    easy        answer      answer        junk
    hard        junk        answer        answer
    junk        junk        junk          junk

Junk is left out of the ranking; everything that is not listed is wrong. A pair has one grade; its
line may be there twice.

A list of sources has one line per image, ``SOURCE IMAGE``. The image is named by its path in the
query or the gallery folder. A path that both folders have is written with the folder before it, as
``query/PATH`` and ``gallery/PATH``; any other may be.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dmlbench.common.errors import UserError
from dmlbench.common.lazy import np, torch
from dmlbench.common.text import counted, listed
from dmlbench.datasets.base import Answers, RetrievalData, Split
from dmlbench.datasets.files.lines import numbered_table
from dmlbench.metrics.relevance import Relevance

if TYPE_CHECKING:
    import numpy.typing as npt

GRADES = ("positive", "easy", "hard", "junk")
MANY = 0.02  # share of test images with copies that is warned of; official sets have fewer
LEVELS = {
    "easy": ("positive", "easy"),
    "medium": ("positive", "easy", "hard"),
    "hard": ("positive", "hard"),
}


def check_apart(name: str, data: RetrievalData) -> None:
    """Check a data set whose queries and gallery are two separate sets of images.

    A warning tells what would change its numbers.

    Raises:
        UserError: it has no query, no gallery, or no query has an answer.
    """
    queries, gallery = data.test, data.searched
    for what, split in (("query", queries), ("gallery", gallery)):
        if not len(split):
            raise UserError(f"{name}: there is no {what} image, so there is nothing to search")
    relevance = data.relevance()
    without = int((relevance.answers == 0).sum())
    if without == len(queries):
        raise UserError(f"{name}: no query has an answer in the gallery: {_why_unanswered(data)}")
    _warn_of_unanswered(name, without, queries, "in the gallery")
    if found := finding_themselves(data, relevance):
        warnings.warn(
            f"{name}: {found} queries find themselves, as their image is in the gallery too: leave "
            "it out, or give it a source",
            stacklevel=4,
        )


def _why_unanswered(data: RetrievalData) -> str:
    """The reason why no query has an answer, and what to do."""
    if data.answers is not None and not any(data.answers.positives):
        return "no line of the list is an answer at this level (level=easy, medium or hard)"
    labels = data.test.labels[data.test.labels >= 0]
    if data.answers is not None or np.isin(labels, data.searched.labels).any():
        return "all that would be right are hidden, as junk or by the source of the query"
    return "the classes of both must have the same names, or a list must name the answers"


def finding_themselves(data: RetrievalData, relevance: Relevance) -> int:
    """The number of queries whose image is in the gallery too, and not hidden from them."""
    queries = list(pixel_hashes(data.test))
    places: dict[bytes, set[int]] = {one: set() for one in queries}
    for place, one in enumerate(pixel_hashes(data.searched)):
        if one in places:
            places[one].add(place)
    excluded = relevance.excluded
    return sum(
        bool(places[one] and places[one] - set(excluded.of(torch.tensor([query]))[0].tolist()))
        for query, one in enumerate(queries)
    )


def pixel_hashes(split: Split) -> Iterator[bytes]:
    """The SHA-256 of the pixels of each image."""
    if split.hashes is not None:
        return (row.tobytes() for row in split.hashes)
    return (hashlib.sha256(image.tobytes()).digest() for image in split.images)


def check_alone(name: str, test: Split) -> None:
    """Warn of test images without an answer among the others, and of many that are there twice."""
    alone = int((np.bincount(test.labels) == 1).sum())
    _warn_of_unanswered(name, alone, test, "among the other test images")
    twice = sum(count for count in Counter(pixel_hashes(test)).values() if count > 1)
    if twice >= MANY * len(test):
        warnings.warn(
            f"{name}: {twice} of {len(test)} test images are there twice or more, and find their "
            "copies first: leave the copies out, or R@K says little",
            stacklevel=4,
        )


def warn_of_shared(name: str, classes: int) -> None:
    """Warn of a number of classes that are in both splits."""
    if classes:
        warnings.warn(
            f"{name}: {counted(classes, 'class is', 'classes are')} in both splits, so this does "
            "not measure retrieval of unseen classes",
            stacklevel=4,
        )


def warn_of_trained(name: str, data: RetrievalData) -> None:
    """Warn of test images that train too."""
    trained = set(pixel_hashes(data.train))
    known = sum(one in trained for one in pixel_hashes(data.test)) if trained else 0
    if known:
        warnings.warn(
            f"{name}: {known:,} of {len(data.test):,} test images train too, so this measures what "
            "a network knows by heart: leave them out of one split",
            stacklevel=4,
        )


def _warn_of_unanswered(name: str, without: int, queries: Split, where: str) -> None:
    if without:
        warnings.warn(
            f"{name}: {without} of {counted(len(queries), 'query', 'queries')} "
            f"{'has' if without == 1 else 'have'} no answer {where}: such a query is "
            "attacked, and left out of R@K, mAP and what follows from them",
            stacklevel=5,
        )


def read_answers(path: Path, queries: Sequence[str], items: Sequence[str], level: str) -> Answers:
    """The answers that a file lists.

    Args:
        path: the file.
        queries: name of each query, by its number.
        items: name of each gallery image, by its position.
        level: easy, medium or hard.

    Raises:
        UserError: the file cannot be read, a line is malformed, an image is not there, a pair has
            two grades, or a query is in no line.
    """
    number, place = _places(queries), _places(items)
    found: list[list[list[int]]] = [[[] for _ in queries] for _ in ("positives", "junk")]
    grades: dict[tuple[str, str], tuple[str, int]] = {}
    for line, (grade, query, item) in numbered_table(path, "GRADE QUERY ITEM"):
        if grade not in GRADES:
            raise UserError(
                f"{path}, line {line}: the grade {grade!r} is none of {', '.join(GRADES)}"
            )
        for what, known, key in (("query", number, query), ("gallery", place, item)):
            if key not in known:
                blanks = any(" " in name for name in known)
                tabs = "; as some have blanks, separate the words of a line by tabs"
                raise UserError(
                    f"{path}, line {line}: {key} is not among the {what} images, which are named "
                    f"by their paths in the {what} folder, such as {next(iter(known))}"
                    f"{tabs if blanks else ''}"
                )
        before, first = grades.setdefault((query, item), (grade, line))
        if before != grade:
            raise UserError(
                f"{path}, line {line}: {item} is {grade} for {query}, and {before} in line "
                f"{first}: leave one out"
            )
        junk = grade not in LEVELS[level]
        found[junk][number[query]].append(place[item])
    named = {query for query, _ in grades}
    if missing := [name for name in queries if name not in named]:
        raise UserError(
            f"{path} has no line for {len(missing)} queries: {listed(missing)}; name their "
            "answers, or take them out of the query folder"
        )
    positives, junk_of = (tuple(tuple(sorted(set(one))) for one in part) for part in found)
    return Answers(positives, junk_of)


def read_sources(
    path: Path, queries: Sequence[str], items: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The sources of the queries and of the gallery images, from a file of ``SOURCE IMAGE`` lines.

    Args:
        path: the file.
        queries: name of each query, by its number.
        items: name of each gallery image, by its position.

    Raises:
        UserError: the file cannot be read, a line is malformed, a name is that of two images, or an
            image has two sources or none.
    """
    names = [*(f"query/{name}" for name in queries), *(f"gallery/{name}" for name in items)]
    whole = {name: [number] for number, name in enumerate(names)}
    short: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(names):
        short[name.partition("/")[2]].append(number)
    meant = short | whole
    found: dict[int, str] = {}
    for line, (source, image) in numbered_table(path, "SOURCE IMAGE"):
        numbers = meant.get(image, [])  # none: of an image that is not measured
        if len(numbers) > 1:
            both = " or ".join(names[number] for number in numbers)
            raise UserError(f"{path}, line {line}: {image} is the name of two images: write {both}")
        for number in numbers:
            if found.setdefault(number, source) != source:
                raise UserError(
                    f"{path}, line {line}: {image} has the source {source}, and {found[number]} in "
                    "a line before: leave one out"
                )
    if missing := [name for number, name in enumerate(names) if number not in found]:
        raise UserError(f"{path} has no source for {len(missing)} images: {listed(missing)}")
    sources = [found[number] for number in range(len(names))]
    return sources[: len(queries)], sources[len(queries) :]


def numbered(*parts: Sequence[str]) -> list[npt.NDArray[np.int64]]:
    """Words as numbers from 0, the same word by the same number in all parts."""
    known = {word: n for n, word in enumerate(sorted({word for part in parts for word in part}))}
    return [np.array([known[word] for word in part], np.int64) for part in parts]


def _places(names: Sequence[str]) -> dict[str, int]:
    return {name: place for place, name in enumerate(names)}
