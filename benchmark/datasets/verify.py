"""A close look at a data set: every file decoded, and held against the official figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from dmlbench.common.errors import UserError
from dmlbench.common.lazy import np
from dmlbench.datasets.base import Dataset, Figures
from dmlbench.datasets.files.cache import Cache, stamp
from dmlbench.datasets.files.decoding import Seen, read_files
from dmlbench.datasets.files.places import existing
from dmlbench.datasets.images import ImageDataset, Listing


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        name: of the data set.
        root: where it lies; None where it is read by other means.
        found: split -> figures.
        official: split -> figures; empty where there are none.
        missing: files of the lists that are not there.
        unreadable: file -> why it cannot be decoded.
        duplicates: groups of files with the same bytes.
        unfit: splits without a class of two images, in words.
        shared: classes that are in both splits.
        cache: ``none``, ``whole`` or ``damaged``: the decoded images against the files.
    """

    name: str
    root: Path | None
    found: dict[str, Figures]
    official: dict[str, Figures]
    missing: tuple[str, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()
    duplicates: tuple[tuple[str, ...], ...] = ()
    unfit: tuple[str, ...] = ()
    shared: int = 0
    cache: str = "none"

    @property
    def sound(self) -> bool:
        """Whether numbers on it can be compared with others'. Duplicates do not count: the
        official sets have some.
        """
        official = all(self.found[part] == figures for part, figures in self.official.items())
        wrong = (self.missing, self.unreadable, self.unfit)
        return official and not any(wrong) and self.cache != "damaged"


def verify(dataset: Dataset, data_root: Path | None, cache: Cache) -> Report:
    """Look at every file of ``dataset``.

    Raises:
        UserError: it is not there (with where to get it), or its lists cannot be read.
    """
    card = dataset.protocol
    figures = {"train": card.train, "test": card.test}
    official = {part: known for part, known in figures.items() if known is not None}
    if isinstance(dataset, ImageDataset):
        return _files(card.name, dataset.found(data_root), official, cache)
    place = dataset.locate(data_root)
    if place is None and type(dataset).download is not Dataset.download:  # load would fetch it
        raise UserError(f"{card.name} is not in {existing(data_root)}: {card.source}")
    data = dataset.load(data_root)  # reading it checks digests of whole files
    found = {
        part: Figures(len(split), len(np.unique(split.labels)))
        for part, split in (("train", data.train), ("test", data.test))
    }
    return Report(card.name, place, found, official)


def _files(name: str, listing: Listing, official: dict[str, Figures], cache: Cache) -> Report:
    names = listing.names
    missing = {name for name in names if not (listing.root / name).is_file()}
    there = [name for name in names if name not in missing]
    seen = read_files(f"read {name}", listing.root, there, cache.reporter)
    groups: dict[bytes, list[str]] = defaultdict(list)
    for path, one in zip(there, seen, strict=True):
        groups[one.file].append(path)
    groups.pop(b"", None)
    return Report(
        name,
        listing.root,
        listing.figures,
        official,
        tuple(sorted(missing)),
        tuple((path, s.problem) for path, s in zip(there, seen, strict=True) if s.problem),
        tuple(tuple(group) for group in groups.values() if len(group) > 1),
        listing.unfit,
        listing.shared,
        "none" if missing else _cached(listing, seen, cache),
    )


def _cached(listing: Listing, seen: Sequence[Seen], cache: Cache) -> str:
    """Whether the decoded images, if there are any, are still those of the files."""
    decoded = cache.find(stamp(listing.root, listing.names), len(seen))
    if decoded is None:
        return "none"
    whole = all(
        one.file == file.tobytes()
        and one.pixels == sha256(image.tobytes()).digest() == pixels.tobytes()
        for one, file, pixels, image in zip(
            seen, decoded.files, decoded.hashes, decoded.images, strict=True
        )
    )
    return "whole" if whole else "damaged"
