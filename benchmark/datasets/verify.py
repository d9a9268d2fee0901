"""Check of a data set: every file is decoded, and counts are compared with official figures."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from dmlbench.common.errors import UserError
from dmlbench.common.files import open_file
from dmlbench.common.lazy import np
from dmlbench.common.text import counted
from dmlbench.datasets.base import Dataset, Figures
from dmlbench.datasets.files.cache import Cache, stamp
from dmlbench.datasets.files.decoding import Seen, read_files
from dmlbench.datasets.files.places import existing
from dmlbench.datasets.images import NEEDED, ImageDataset, Listing

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Verification:
    """The result of checking a data set.

    Attributes:
        name: the data set's name.
        root: its folder; None if it is not read from one.
        found: split -> the figures that were found.
        official: split -> official figures; empty if there are none.
        files: SHA-256 over the paths and contents of all files, whatever their order; empty if
            some are missing or unreadable, or if the data set is not one of image files.
        official_files: the official one; empty if there is none.
        missing: listed files that are not there.
        unreadable: (file, reason) of each file that cannot be decoded.
        duplicates: groups of files with the same bytes.
        unfit: reasons, in words, for each split that is too small for retrieval.
        shared: number of classes that are in both splits.
        notes: what a run would warn of.
        cache: the decoded images compared with the files: ``none``, ``whole`` or ``damaged``.
    """

    name: str
    root: Path | None
    found: dict[str, Figures]
    official: dict[str, Figures]
    files: str = ""
    official_files: str = ""
    missing: tuple[str, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()
    duplicates: tuple[tuple[str, ...], ...] = ()
    unfit: tuple[str, ...] = ()
    shared: int = 0
    notes: tuple[str, ...] = ()
    cache: str = "none"

    @property
    def sound(self) -> bool:
        """True if numbers on this data set can be compared with others'.

        Duplicates do not matter: the official data sets have some.
        """
        official = all(self.found[part] == figures for part, figures in self.official.items())
        altered = self.official_files not in ("", self.files)
        wrong = (self.missing, self.unreadable, self.unfit, altered)
        return official and not any(wrong) and self.cache != "damaged"


def verify(dataset: Dataset, data_root: Path | None, cache: Cache) -> Verification:
    """Check every file of ``dataset``.

    Raises:
        UserError: it is not there (the message says where to get it), or its lists are malformed.
    """
    card = dataset.protocol
    if isinstance(dataset, ImageDataset):
        cache = replace(cache, side=dataset.side)
        return _files(dataset, dataset.found(data_root), cache)
    place = dataset.locate(data_root)
    if place is None and type(dataset).download is not Dataset.download:  # load would download it
        raise UserError(f"{card.name} is not in {existing(data_root)}: {card.source}")
    data = dataset.load(data_root)  # which checks digests of whole files
    found = {part: split.figures for part, split in data.splits.items()}
    return Verification(card.name, place, found, card.figures)


def _files(dataset: ImageDataset, listing: Listing, cache: Cache) -> Verification:
    card, names = dataset.protocol, listing.names
    missing = {name for name in names if not (listing.root / name).is_file()}
    there = [name for name in names if name not in missing]
    seen = read_files(f"read {card.name}", listing.root, there, cache.reporter, None, cache.side)
    groups: dict[bytes, list[str]] = defaultdict(list)
    for path, one in zip(there, seen, strict=True):
        groups[one.file].append(path)
    groups.pop(b"", None)
    unreadable = tuple((path, s.problem) for path, s in zip(there, seen, strict=True) if s.problem)
    unfit = tuple(f"{problem}; {NEEDED}" for problem in listing.unfit)
    notes: tuple[str, ...] = ()
    if not (missing or unreadable or unfit):
        unfit, notes = _answers(dataset, listing, seen)
        notes += tuple(_ignored(listing.root, names))
    return Verification(
        card.name,
        listing.root,
        listing.figures,
        card.figures,
        "" if missing or unreadable else _digest(there, seen),
        card.files,
        missing=tuple(sorted(missing)),
        unreadable=unreadable,
        duplicates=tuple(tuple(group) for group in groups.values() if len(group) > 1),
        unfit=unfit,
        shared=listing.shared,
        notes=notes,
        cache="none" if missing else _cached(listing, seen, cache),
    )


def _answers(
    dataset: ImageDataset, listing: Listing, seen: Sequence[Seen]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The reasons for which a run refuses queries and gallery, and what it warns of."""
    hashes = np.frombuffer(b"".join(one.pixels for one in seen), np.uint8).reshape(len(seen), -1)
    data = dataset.arranged(listing, np.zeros((len(seen), 1, 1, 1), np.uint8), hashes)
    distractors = int((data.searched.labels < 0).sum())
    one, many = "image of the gallery is a distractor", "images of the gallery are distractors"
    notes = [counted(distractors, one, many)] * bool(distractors)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            dataset.check_answers(data)
        except UserError as error:
            return (str(error),), tuple(notes)
    return (), (*notes, *(str(one.message) for one in said))


def _ignored(root: Path, names: Sequence[str]) -> Iterator[str]:
    """Notes that count the files of which something is not decoded, as in the papers' code.

    That is a rotation, transparency, or every image of a file but the first.
    """
    from PIL import ExifTags, Image

    turned = clear = several = 0
    with warnings.catch_warnings(action="ignore"):  # Pillow's on odd files
        for name in names:
            with open_file(root / name) as file, Image.open(file) as image:
                turned += image.getexif().get(ExifTags.Base.Orientation, 1) != 1
                clear += image.has_transparency_data
                several += _has_frames(image)
    if turned:
        yield f"{_files_have(turned)} a rotation in the EXIF data, which is ignored"
    if clear:
        yield f"{_files_have(clear)} transparency, which is dropped"
    if several:
        yield f"{_files_have(several)} more than one image (frames, pages): only the first is used"


def _has_frames(image: Image) -> bool:
    """True if an opened file is an animation, or has several pages.

    A photograph may hold a second picture for programs (MPO): it is one image.
    """
    try:
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # Pillow raises many kinds on broken bytes, which the first image is not
        return True


def _files_have(number: int) -> str:
    return counted(number, "file has", "files have")


def _digest(names: Sequence[str], seen: Sequence[Seen]) -> str:
    """SHA-256 over the sorted paths and the SHA-256 of each file."""
    lines = sorted(f"{one.file.hex()}  {name}\n" for name, one in zip(names, seen, strict=True))
    return sha256("".join(lines).encode()).hexdigest()


def _cached(listing: Listing, seen: Sequence[Seen], cache: Cache) -> str:
    """``none``, ``whole`` or ``damaged``: the cached images compared with the decoded files."""
    decoded = cache.find(stamp(listing.root, listing.names, cache.side), len(seen))
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
