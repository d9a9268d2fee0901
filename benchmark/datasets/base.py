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
    """How many images and classes a split has."""

    images: int
    classes: int

    def __str__(self) -> str:
        return f"{self.images:,} images of {self.classes:,} classes"


@dataclass(frozen=True)
class DatasetCard(Card):
    """What ``run`` does with a data set when no flag says otherwise.

    Attributes:
        model: spec of the network.
        recipe: how it is trained.
        threat: the adversary of the evaluation.
        training_threat: the adversary inside adversarial training.
        note: where the recipe leaves the paper's protocol, in words; shown on boards.
        train: the official figures of the train split; None where there are none.
        test: those of the test split.
        source: where to get the files and where to put them, in words.
        literature: the data set whose published rows are closest, where it has none of its own.
    """

    model: str = field(kw_only=True)
    recipe: Recipe = field(kw_only=True)
    threat: Threat = field(kw_only=True)
    training_threat: TrainingThreat = field(kw_only=True)
    note: str = field(kw_only=True, default="")
    train: Figures | None = field(kw_only=True, default=None)
    test: Figures | None = field(kw_only=True, default=None)
    source: str = field(kw_only=True, default="it comes with its package")
    literature: str = field(kw_only=True, default="")


@dataclass(frozen=True)
class Split:
    """Labelled images.

    Attributes:
        images: (N, C, H, W) uint8; of a large set a read-only memory map, never copied whole.
        labels: (N,) int64.
        hashes: (N, 32) uint8, the SHA-256 of each image's pixels where they were taken when it
            was decoded, so that the digest of a large set needs no pass over its pixels.
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
    """The train split a defense learns from, and the test split that is gallery and queries.

    Attributes:
        crop: side of the square that the network sees: cut at random and flipped at random in
            training, from the centre in evaluation. None: the whole image, always as it is.
    """

    train: Split
    test: Split
    crop: int | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 over shapes, pixels (or the hashes of them) and labels of both splits."""
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
        """uint8 images (B, C, H, W) as the network sees them in training: float32 in [0, 1].

        Each image is cut at a place of its own and flipped with probability 1/2, both drawn from
        ``generator``; where there is no crop nothing is drawn. It all happens on the images'
        device. (``RandomCrop`` of torchvision.transforms.v2 draws one place for the whole batch.)
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
        """uint8 images as the network sees them in evaluation: the centre, float32 in [0, 1]."""
        if self.crop is not None:
            top = round((images.shape[2] - self.crop) / 2)
            left = round((images.shape[3] - self.crop) / 2)
            images = images[:, :, top : top + self.crop, left : left + self.crop]
        return images.float().div_(255)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return int(self.test.images.shape[1])

    @property
    def size(self) -> int:
        """Height (and width) in pixels of an image as the network sees it."""
        return self.crop or int(self.test.images.shape[2])


@dataclass(frozen=True, kw_only=True)
class Dataset(Component, abc.ABC):
    """A registered data set; its fields select among its variants."""

    @property
    def protocol(self) -> DatasetCard:
        """The card, typed."""
        assert isinstance(self.card, DatasetCard)
        return self.card

    @property
    def known_digest(self) -> str | None:
        """The digest of what ``load`` returns where that is fixed, so that plans read no image."""
        return None

    @abc.abstractmethod
    def load(self, data_root: Path | None, cache: Cache | None = None) -> RetrievalData:
        """Read and check the files.

        Args:
            data_root: folder the user named for data sets, searched first.
            cache: where images are decoded to, for sets of image files; None: the default place.

        Raises:
            UserError: a file is missing or is not what it should be.
        """

    def locate(self, data_root: Path | None) -> Path | None:
        """The folder that holds its files; None where it is not to be found."""
        return None

    def download(self, data_root: Path | None, reporter: Reporter) -> Path:
        """Bring the files to ``data_root`` (or ``places.HOME``) and return their folder.

        Raises:
            UserError: no host serves them, or what it serves is not what it should be.
        """
        raise UserError(f"{self.card.name} cannot be downloaded: {self.protocol.source}")


def stratified(split: Split, size: int, seed: int) -> Split:
    """``size`` images drawn without replacement, equally many a class (to within one).

    The draw depends on the seed and the split alone; the original order is kept.

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
