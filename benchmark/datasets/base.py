"""A retrieval data set: images to train on, queries and gallery, and the protocol on its card."""

from __future__ import annotations

import abc
import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dmlbench.common.errors import UserError
from dmlbench.common.lazy import np, torch
from dmlbench.core.protocol import Recipe, Threat, TrainingThreat
from dmlbench.core.registry import Card, Component, Registry
from dmlbench.metrics.names import RECALLS_AT, benign
from dmlbench.metrics.relevance import Groups, Lists, Relevance

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmlbench.common.progress import Reporter
    from dmlbench.datasets.files.cache import Cache


def _hint(name: str) -> str:
    """The spec of a folder whose path was given as the name of a data set; else empty."""
    root = f'"{name}"' if "," in name else name
    return f"the images of a folder are folder:root={root}" if _is_folder(name) else ""


def _is_folder(name: str) -> bool:
    try:
        return bool(name) and Path(name).is_dir()
    except (OSError, ValueError):  # no name of a file
        return False


DATASETS: Registry[Dataset] = Registry("data set", "dmlbench.datasets", ("load",), _hint)


@dataclass(frozen=True)
class Figures:
    """Number of images and classes of a split."""

    images: int
    classes: int

    def __str__(self) -> str:
        return f"{self.images:,} images of {self.classes:,} classes"


@dataclass(frozen=True)
class DatasetCard(Card):
    """The protocol of a data set: the settings of ``run`` when no flag changes them.

    Attributes:
        model: spec of the network.
        recipe: hyperparameters of training.
        threat: the adversary of the evaluation.
        training_threat: the adversary inside adversarial training.
        note: differences from the paper's protocol, in words; shown on boards.
        train: official figures of the train split; None if there are none.
        test: official figures of the test split; None if there are none.
        gallery: official figures of the gallery, where the test images are only its queries.
        files: official SHA-256 over the paths and contents of all files; empty if there is none.
        source: in words, where to get the files and where to put them.
        literature: another data set whose published rows are shown too, if this one has none.
        recalls: the values of K in the R@K of clean images that papers report of it.
    """

    model: str = field(kw_only=True)
    recipe: Recipe = field(kw_only=True)
    threat: Threat = field(kw_only=True)
    training_threat: TrainingThreat = field(kw_only=True)
    note: str = field(kw_only=True, default="")
    train: Figures | None = field(kw_only=True, default=None)
    test: Figures | None = field(kw_only=True, default=None)
    gallery: Figures | None = field(kw_only=True, default=None)
    files: str = field(kw_only=True, default="")
    source: str = field(kw_only=True, default="it comes with its package")
    literature: str = field(kw_only=True, default="")
    recalls: tuple[int, ...] = field(kw_only=True, default=(1, 2))

    def __post_init__(self) -> None:
        if 1 not in self.recalls or not set(self.recalls) <= set(RECALLS_AT):
            raise ValueError(f"recalls must be 1 and others of {RECALLS_AT}, got {self.recalls}")

    @property
    def figures(self) -> dict[str, Figures]:
        """Name of a split -> its official figures, of those splits that have some."""
        every = {"train": self.train, "test": self.test, "gallery": self.gallery}
        return {part: figures for part, figures in every.items() if figures is not None}


@dataclass(frozen=True)
class Split:
    """Labelled images.

    Attributes:
        images: (N, C, H, W) uint8; for a large set a read-only memory map, never copied whole.
        labels: (N,) int64; -1 for no class, as distractors of a gallery have.
        hashes: (N, 32) uint8, the SHA-256 of each image's pixels, taken when it was decoded, so
            that the digest of a large set needs no pass over its pixels; None: not taken.
        sources: (N,) int64, where an image is from (its camera, or the object that it shows): a
            query never sees the gallery images of its own source. -1: none but the image itself.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint8] | None = None
    sources: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.sources is not None and self.sources.shape != self.labels.shape:
            raise ValueError(f"{len(self.labels)} images need as many sources")
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(f"images must be (N, C, H, W) uint8, got {self.images.shape}")
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"{len(self.images)} images need as many labels, got {self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def figures(self) -> Figures:
        """The number of its images and classes; distractors have no class."""
        return Figures(len(self), len(np.unique(self.labels[self.labels >= 0])))

    def batch(self, index: npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
        """The images at ``index`` (B,), uint8 on ``device``."""
        return torch.from_numpy(self.images[index]).to(device)


@dataclass(frozen=True)
class Answers:
    """The gallery images that answer each query, as a benchmark lists them, in place of classes.

    Attributes:
        positives: of each query, the positions of its answers in the gallery.
        junk: of each query, positions that it never sees, as they are neither right nor wrong.
    """

    positives: tuple[tuple[int, ...], ...]
    junk: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        for query, (right, hidden) in enumerate(zip(self.positives, self.junk, strict=False)):
            if len({*right, *hidden}) < len(right) + len(hidden):
                raise UserError(
                    f"a gallery image is listed twice for query {query}, as an answer or as junk: "
                    "each position may be there once"
                )


@dataclass(frozen=True)
class RetrievalData:
    """The train split, the queries, and the gallery that they search.

    Attributes:
        train: images for training.
        test: images for evaluation: each is a query. Without a gallery of its own the set is
            searched by leave-one-out: all other test images are the gallery of a query.
        crop: side of the square that the network sees: cut at a random place and flipped at
            random in training, cut from the centre in evaluation. None: the whole image.
        gallery: images that the queries search, where they are apart from the test images.
        answers: what answers each query, where that does not follow from the labels.
        recalls: the values of K in the R@K of clean images; a session takes those of the card.
    """

    train: Split
    test: Split
    crop: int | None = None
    gallery: Split | None = None
    answers: Answers | None = None
    recalls: tuple[int, ...] = (1, 2)

    @property
    def searched(self) -> Split:
        """The images that a query searches."""
        return self.test if self.gallery is None else self.gallery

    @property
    def splits(self) -> dict[str, Split]:
        """Name of a split -> its images; the gallery only where it is apart."""
        found = {"train": self.train, "test": self.test}
        return found if self.gallery is None else found | {"gallery": self.gallery}

    @property
    def benign(self) -> tuple[str, ...]:
        """Names of the metrics of its clean images."""
        return benign(self.recalls, listed=self.answers is not None)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over shapes, pixels (or their hashes), labels and what else decides a number."""
        digest = hashlib.sha256()
        for split in self.splits.values():
            pixels = split.images if split.hashes is None else split.hashes
            for array, content in ((split.images, pixels), (split.labels, split.labels)):
                digest.update(f"{array.dtype} {array.shape};".encode())
                digest.update(np.ascontiguousarray(content).tobytes())
            if split.sources is not None:
                digest.update(b"sources;" + np.ascontiguousarray(split.sources).tobytes())
        if self.crop is not None:
            digest.update(f"crop {self.crop};".encode())
        if self.answers is not None:
            digest.update(f"answers {self.answers.positives} {self.answers.junk};".encode())
        return digest.hexdigest()

    def relevance(self, device: torch.device | str = "cpu") -> Relevance:
        """The answers to each query, and the gallery images that it never sees."""
        queries, items = self.test, self.searched

        def on_device(values: npt.NDArray[np.int64]) -> torch.Tensor:
            return torch.from_numpy(values).to(device)

        if self.answers is not None:
            positives = Lists.of_queries(self.answers.positives, device)
        else:
            positives = Groups.of_ids(on_device(items.labels), on_device(queries.labels))
        own, number = queries.sources, np.arange(len(queries))
        if self.gallery is None:
            # an image without a source is a source of its own
            own = number if own is None else np.where(own < 0, own.max() + 1 + number, own)
            theirs = own
        elif own is None or items.sources is None:
            own, theirs = np.full(len(queries), -1), np.full(len(items), -1)
        else:
            theirs = items.sources
        excluded: Lists = Groups.of_ids(on_device(theirs), on_device(own))
        if self.answers is not None:
            excluded = excluded.joined(Lists.of_queries(self.answers.junk, device))
        return Relevance(positives, excluded)

    def training_pixels(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Turn uint8 images (B, C, H, W) into what the network sees in training.

        The result is float32 in [0, 1], on the device of the images. Each image is cut at a place
        of its own and flipped with probability 1/2, both drawn from ``generator``; without a crop
        nothing is drawn. (torchvision's ``v2.RandomCrop`` draws one place for the whole batch.)
        """
        if self.crop is None:
            return images.float().div_(255)
        count, _, height, width = images.shape

        def drawn(values: int) -> torch.Tensor:
            draw = torch.randint(values, (count,), generator=generator, device=generator.device)
            return draw.to(images.device)

        top, left = drawn(height - self.crop + 1), drawn(width - self.crop + 1)
        flipped = drawn(2).bool()
        windows = images.unfold(2, self.crop, 1).unfold(3, self.crop, 1)  # a view of every cut
        cut = windows[torch.arange(count, device=images.device), :, top, left]
        return torch.where(flipped[:, None, None, None], cut.flip(3), cut).float().div_(255)

    def evaluation_pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Turn uint8 images (B, C, H, W) into centre crops for evaluation, float32 in [0, 1]."""
        if self.crop is not None:
            top = round((images.shape[2] - self.crop) / 2)
            left = round((images.shape[3] - self.crop) / 2)
            images = images[:, :, top : top + self.crop, left : left + self.crop]
        return images.float().div_(255)

    @property
    def channels(self) -> int:
        """Number of channels of an image."""
        return int(self.test.images.shape[1])

    @property
    def size(self) -> int:
        """Height (and width) in pixels of an image as the network sees it."""
        return self.crop or int(self.test.images.shape[2])


@dataclass(frozen=True, kw_only=True)
class Dataset(Component, abc.ABC):
    """A registered data set; its fields are the keys of its spec and select a variant."""

    @property
    def protocol(self) -> DatasetCard:
        """The card as a ``DatasetCard``."""
        assert isinstance(self.card, DatasetCard)
        return self.card

    @property
    def known_digest(self) -> str | None:
        """The digest of what ``load`` returns, if that never changes: plans then read no image."""
        return None

    @property
    def benign(self) -> tuple[str, ...]:
        """Names of the metrics of its clean images, known before any is read."""
        return benign(self.protocol.recalls)

    @abc.abstractmethod
    def load(self, data_root: Path | None, cache: Cache | None = None) -> RetrievalData:
        """Read and check the files.

        Args:
            data_root: the folder for data sets that the user named; None: ``places.HOME``.
            cache: keeps decoded images, for sets of image files; None: at the default place.

        Raises:
            UserError: a file is missing or is not the expected one.
        """

    def locate(self, data_root: Path | None) -> Path | None:
        """The folder that holds the files of the data set; None if there is none."""
        return None

    def download(self, data_root: Path | None, reporter: Reporter) -> Path:
        """Download the files into ``data_root`` (or ``places.HOME``); returns their folder.

        Raises:
            UserError: no host serves them, or it serves other files than the expected ones.
        """
        raise UserError(f"{self.card.name} cannot be downloaded: {self.protocol.source}")
