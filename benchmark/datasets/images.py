"""Data sets of image files: the files of both splits are listed, and decoded into the cache.

The network sees squares of ``size`` pixels, 224 unless the spec says otherwise: cut at random and
flipped at random in training, cut from the centre in evaluation. They are cut from images that were
resized to 8/7 of that, 256 x 256.
"""

from __future__ import annotations

import abc
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from dmlbench.common.errors import UserError
from dmlbench.common.files import read_file
from dmlbench.common.lazy import np
from dmlbench.core.protocol import Recipe, Threat, TrainingThreat
from dmlbench.core.spec import parameter
from dmlbench.datasets.base import Dataset, Figures, RetrievalData, Split
from dmlbench.datasets.files.cache import Cache
from dmlbench.datasets.files.places import existing

SIZE = 224  # of what the network sees, in the papers
NEEDED = "retrieval needs two or more classes, of two or more images"
RECIPE = Recipe(epochs=75, pairs=56, lr=1e-5, weight_decay=4e-4)
THREAT = Threat(eps=8 / 255, alpha=3 / 255, steps=32)
TRAINING_THREAT = TrainingThreat(eps=8 / 255, eta=32, alpha=1 / 255)

LabelledPath = tuple[str, int]  # a path below the root, and its label


@dataclass(frozen=True)
class Listing:
    """The files of both splits with their labels; their order gives each image its index."""

    root: Path
    train: tuple[LabelledPath, ...]
    test: tuple[LabelledPath, ...]

    @property
    def names(self) -> list[str]:
        """Every path: first the train split, then the test split."""
        return [name for name, _ in (*self.train, *self.test)]

    @property
    def figures(self) -> dict[str, Figures]:
        """Number of images and classes: split -> figures."""
        parts = {"train": self.train, "test": self.test}
        return {
            name: Figures(len(part), len({label for _, label in part}))
            for name, part in parts.items()
        }

    @property
    def unfit(self) -> tuple[str, ...]:
        """Reasons, in words, for each split that is too small for retrieval."""
        found = []
        for name, part in (("train", self.train), ("test", self.test)):
            sizes = Counter(label for _, label in part)
            if len(sizes) < 2:
                what = "a single class" if sizes else "no images"
            elif max(sizes.values()) < 2:
                what = "one image a class"
            else:
                continue
            found.append(f"the {name} split in {self.root} has {what}")
        return tuple(found)

    @property
    def shared(self) -> int:
        """Number of classes that are in both splits."""
        return len({label for _, label in self.train} & {label for _, label in self.test})


@dataclass(frozen=True, kw_only=True)
class ImageDataset(Dataset, abc.ABC):
    """A data set of image files."""

    size: int = parameter(SIZE, "pixels a side that the network sees", at_least=32)

    @property
    def side(self) -> int:
        """Pixels a side of the decoded images, from which ``size`` is cut: 256 for 224."""
        return round(self.size * 8 / 7)

    @abc.abstractmethod
    def listing(self, root: Path) -> Listing:
        """List the files in ``root``, the folder that ``locate`` returned. No image is read.

        Raises:
            UserError: an official list of files is missing, or malformed.
        """

    def found(self, data_root: Path | None) -> Listing:
        """The listing of the data set; UserError with its source if it is not there."""
        root = self.locate(data_root)
        if root is None:
            raise UserError(
                f"{self.card.name} is not in {existing(data_root)}: {self.protocol.source}"
            )
        return self.listing(root)

    def load(self, data_root: Path | None, cache: Cache | None = None) -> RetrievalData:
        """Read the images of the listing, from the cache or decoded into it.

        Raises:
            UserError: the number of images is not the official one, a split has no class of two
                images, a file is missing or cannot be decoded.
        """
        listing = self.found(data_root)
        self._check(listing)
        cache = replace(cache or Cache(), side=self.side)
        decoded = cache.decoded(self.card.name, listing.root, listing.names)
        labels = np.array([label for _, label in (*listing.train, *listing.test)], np.int64)
        cut = len(listing.train)
        train, test = (
            Split(decoded.images[part], labels[part], decoded.hashes[part])
            for part in (slice(None, cut), slice(cut, None))
        )
        return RetrievalData(train, test, crop=self.size)

    def _check(self, listing: Listing) -> None:
        card = self.protocol
        for part, found in listing.figures.items():
            official = card.train if part == "train" else card.test
            if official is not None and found != official:
                raise UserError(
                    f"{card.name}: the {part} split in {listing.root} has {found}, the official "
                    f"one {official}: 'dmlbench data verify {card.name}' looks closer; a set of "
                    "your own is --dataset folder:root=DIR"
                )
        for problem in listing.unfit:
            raise UserError(f"{card.name}: {problem}; {NEEDED}")
        if listing.shared:
            warnings.warn(
                f"{card.name}: {listing.shared} classes are in both splits, so this does not "
                "measure retrieval of unseen classes",
                stacklevel=3,
            )


def find(data_root: Path | None, marker: str, *folders: str) -> Path | None:
    """The folder with the file ``marker``: the data root, or one of ``folders`` in it."""
    root = existing(data_root)
    try:
        places = (root, *(root / folder for folder in folders))
        return next((place for place in places if (place / marker).is_file()), None)
    except OSError as error:
        raise UserError(f"{root} cannot be read: {error.strerror}") from None


def table(path: Path, columns: int) -> list[list[str]]:
    """Split each line of a text file into ``columns`` words; the last one may contain spaces.

    Raises:
        UserError: the file cannot be read, or a line has fewer words.
    """
    try:
        lines = read_file(path).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): the data set needs this list"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        words = line.strip().split(maxsplit=columns - 1)
        if words and len(words) < columns:
            raise UserError(f"{path}, line {number}: expected {columns} words, got {line!r}")
        rows += [words] if words else []
    return rows


def whole(text: str, path: Path) -> int:
    """``text`` as a whole number; UserError that names the file if it is none."""
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{path}: expected a whole number, got {text!r}") from None
