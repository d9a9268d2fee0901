"""Data sets of image files: the files of both splits are listed, and decoded into the cache.

The network sees squares of ``size`` pixels, 224 unless the spec says otherwise: cut at random and
flipped at random in training, cut from the centre in evaluation. They are cut from images that were
resized to 8/7 of that, 256 x 256.
"""

from __future__ import annotations

import abc
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmlbench.common.errors import UserError
from dmlbench.common.lazy import np
from dmlbench.core.protocol import Recipe, Threat, TrainingThreat
from dmlbench.core.spec import parameter
from dmlbench.datasets.apart import check_alone, check_apart, warn_of_shared
from dmlbench.datasets.base import Answers, Dataset, Figures, RetrievalData, Split
from dmlbench.datasets.files.cache import Cache
from dmlbench.datasets.files.lines import numbered_table
from dmlbench.datasets.files.places import existing

if TYPE_CHECKING:
    import numpy.typing as npt

SIZE = 224  # of what the network sees, in the papers
NEEDED = "retrieval needs two or more classes, of two or more images"
RECIPE = Recipe(epochs=75, pairs=56, lr=1e-5, weight_decay=4e-4)
THREAT = Threat(eps=8 / 255, alpha=3 / 255, steps=32)
TRAINING_THREAT = TrainingThreat(eps=8 / 255, eta=32, alpha=1 / 255)

LabelledPath = tuple[str, int]  # a path below the root, and its label


@dataclass(frozen=True)
class Listing:
    """The files of all splits with their labels; their order gives each image its index.

    Attributes:
        root: the folder that paths are below.
        train, test: the splits.
        gallery: the images that those of ``test`` search, where they are apart; they may be those
            that train.
        answers: what answers each query, where that does not follow from the labels.
        sources: of the test and of the gallery images (``Split.sources``).
    """

    root: Path
    train: tuple[LabelledPath, ...]
    test: tuple[LabelledPath, ...]
    gallery: tuple[LabelledPath, ...] | None = None
    answers: Answers | None = None
    sources: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    @property
    def splits(self) -> dict[str, tuple[LabelledPath, ...]]:
        """Name of a split -> its images; the gallery only where it is apart."""
        found = {"train": self.train, "test": self.test}
        return found if self.gallery is None else found | {"gallery": self.gallery}

    @property
    def parts(self) -> dict[str, slice]:
        """Name of a split -> the place of its images among ``names``."""
        found: dict[str, slice] = {}
        first = 0
        for name, part in self.splits.items():
            if name == "gallery" and part == self.train:
                found[name] = found["train"]
                continue
            found[name] = slice(first, first := first + len(part))
        return found

    @property
    def labelled(self) -> list[LabelledPath]:
        """Every image once: the train split, the test split, the gallery."""
        last = 0
        found: list[LabelledPath] = []
        for name, place in self.parts.items():
            found += self.splits[name] if place.start >= last else ()
            last = place.stop
        return found

    @property
    def names(self) -> list[str]:
        """The paths of ``labelled``."""
        return [name for name, _ in self.labelled]

    @property
    def figures(self) -> dict[str, Figures]:
        """Number of images and classes: split -> figures."""
        return {
            name: Figures(len(part), len({label for _, label in part if label >= 0}))
            for name, part in self.splits.items()
        }

    @property
    def unfit(self) -> tuple[str, ...]:
        """Reasons, in words, for each split that is too small for retrieval."""
        found = []
        leave_one_out = [("train", self.train), ("test", self.test)]
        if self.gallery is not None:  # apart.check_apart looks at queries and gallery
            leave_one_out = leave_one_out[:1] if self.train else []
        for name, part in leave_one_out:
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
        train, test = ({label for _, label in part} for part in (self.train, self.test))
        return len((train & test) - {-1})


@dataclass(frozen=True, kw_only=True)
class ImageDataset(Dataset, abc.ABC):
    """A data set of image files."""

    size: int = parameter(SIZE, "pixels a side that the network sees", at_least=32, at_most=4096)

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
        data = self.arranged(listing, decoded.images, decoded.hashes)
        self.check_answers(data)
        return data

    def arranged(
        self,
        listing: Listing,
        images: npt.NDArray[np.uint8],
        hashes: npt.NDArray[np.uint8],
    ) -> RetrievalData:
        """The splits of the listing, of the pixels of its images and their SHA-256."""
        labels = np.array([label for _, label in listing.labelled], np.int64)
        splits: dict[str, Any] = {
            name: Split(images[part], labels[part], hashes[part])
            for name, part in listing.parts.items()
        }
        if listing.sources is not None:
            for name, sources in zip(("test", "gallery"), listing.sources, strict=True):
                splits[name] = replace(splits[name], sources=sources)
        return RetrievalData(**splits, crop=self.size, answers=listing.answers)

    def check_answers(self, data: RetrievalData) -> None:
        """Warn of queries without an answer, and of images that find themselves.

        Raises:
            UserError: there is no query or no gallery, or no query has an answer.
        """
        if data.gallery is not None:
            check_apart(self.card.name, data)
        else:
            check_alone(self.card.name, data.test)

    def _check(self, listing: Listing) -> None:
        card = self.protocol
        for part, found in listing.figures.items():
            official = card.figures.get(part, found)
            if found != official:
                raise UserError(
                    f"{card.name}: the {part} split in {listing.root} has {found}, the official "
                    f"one {official}: 'dmlbench data verify {card.name}' looks closer; a set of "
                    "your own is --dataset folder:root=DIR"
                )
        for problem in listing.unfit:
            raise UserError(f"{card.name}: {problem}; {NEEDED}")
        warn_of_shared(card.name, listing.shared)


def find(data_root: Path | None, marker: str, *folders: str) -> Path | None:
    """The folder with the file ``marker``: the data root, or one of ``folders`` in it."""
    root = existing(data_root)
    try:
        places = (root, *(root / folder for folder in folders))
        return next((place for place in places if (place / marker).is_file()), None)
    except OSError as error:
        raise UserError(f"{root} cannot be read: {error.strerror}") from None


def table(path: Path, form: str) -> list[list[str]]:
    """The words of each line of a text file (``numbered_table``)."""
    return [words for _, words in numbered_table(path, form)]


def whole(text: str, path: Path) -> int:
    """``text`` as a whole number; UserError that names the file if it is none."""
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{path}: expected a whole number, got {text!r}") from None
