"""A retrieval data set: two labelled splits, a content digest, and the protocol on its card."""

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

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmlbench.common.progress import Reporter
    from dmlbench.datasets.files.cache import Cache

DATASETS: Registry[Dataset] = Registry("data set", "dmlbench.datasets", required=("load",))


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
        files: official SHA-256 over the paths and contents of all files; empty if there is none.
        source: in words, where to get the files and where to put them.
        literature: another data set whose published rows are shown too, if this one has none.
    """

    model: str = field(kw_only=True)
    recipe: Recipe = field(kw_only=True)
    threat: Threat = field(kw_only=True)
    training_threat: TrainingThreat = field(kw_only=True)
    note: str = field(kw_only=True, default="")
    train: Figures | None = field(kw_only=True, default=None)
    test: Figures | None = field(kw_only=True, default=None)
    files: str = field(kw_only=True, default="")
    source: str = field(kw_only=True, default="it comes with its package")
    literature: str = field(kw_only=True, default="")


@dataclass(frozen=True)
class Split:
    """Labelled images.

    Attributes:
        images: (N, C, H, W) uint8; for a large set a read-only memory map, never copied whole.
        labels: (N,) int64.
        hashes: (N, 32) uint8, the SHA-256 of each image's pixels, taken when it was decoded, so
            that the digest of a large set needs no pass over its pixels; None: not taken.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(f"images must be (N, C, H, W) uint8, got {self.images.shape}")
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"{len(self.images)} images need as many labels, got {self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
        """The images at ``index`` (B,), uint8 on ``device``."""
        return torch.from_numpy(self.images[index]).to(device)


@dataclass(frozen=True)
class RetrievalData:
    """The train split, and the test split, whose images are both queries and gallery.

    Attributes:
        train: images for training.
        test: images for evaluation: each is a query, and all others are its gallery.
        crop: side of the square that the network sees: cut at a random place and flipped at
            random in training, cut from the centre in evaluation. None: the whole image.
    """

    train: Split
    test: Split
    crop: int | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 over shapes, pixels (or their hashes) and labels of both splits."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            pixels = split.images if split.hashes is None else split.hashes
            for array, content in ((split.images, pixels), (split.labels, split.labels)):
                digest.update(f"{array.dtype} {array.shape};".encode())
                digest.update(np.ascontiguousarray(content).tobytes())
        if self.crop is not None:
            digest.update(f"crop {self.crop};".encode())
        return digest.hexdigest()

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


def stratified(split: Split, size: int, seed: int) -> Split:
    """Draw ``size`` images without replacement, equally many of each class (to within one).

    The draw depends only on the seed and the split; the images stay in their order.

    Raises:
        UserError: a class has too few images for its share.
    """
    if size > len(split):
        raise UserError(f"a subset of {size} images was asked of a split of {len(split)}")
    classes = np.unique(split.labels)
    generator = np.random.default_rng(seed)
    chosen = []
    for rank, label in enumerate(classes):
        members = np.flatnonzero(split.labels == label)
        share = size // len(classes) + (rank < size % len(classes))
        if share > len(members):
            raise UserError(f"class {label} has {len(members)} images; its share would be {share}")
        chosen.append(generator.permutation(members)[:share])
    index = np.sort(np.concatenate(chosen))
    return Split(split.images[index], split.labels[index])
