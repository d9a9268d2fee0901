"""A retrieval data set: two labelled splits, a content digest, and the protocol on its card."""

from __future__ import annotations

import abc
import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dmlbench.errors import UserError
from dmlbench.lazy import np
from dmlbench.recipe import Recipe, Threat, TrainingThreat
from dmlbench.registry import Card, Component, Registry

if TYPE_CHECKING:
    import numpy.typing as npt

DATASETS: Registry[Dataset] = Registry("data set", "dmlbench.datasets", required=("load",))


@dataclass(frozen=True)
class DatasetCard(Card):
    """What ``run`` does with a data set when no flag says otherwise.

    Attributes:
        model: spec of the network.
        recipe: how it is trained.
        threat: the adversary of the evaluation.
        training_threat: the adversary inside adversarial training.
        note: where the recipe leaves the paper's protocol, in words; shown on boards.
        literature: the data set whose published rows are closest, where it has none of its own.
    """

    model: str = field(kw_only=True)
    recipe: Recipe = field(kw_only=True)
    threat: Threat = field(kw_only=True)
    training_threat: TrainingThreat = field(kw_only=True)
    note: str = field(kw_only=True, default="")
    literature: str = field(kw_only=True, default="")


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8 and labels (N,) int64."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(f"images must be (N, C, H, W) uint8, got {self.images.shape}")
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"{len(self.images)} images need as many labels, got {self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class RetrievalData:
    """The train split a defense learns from, and the test split that is gallery and queries."""

    train: Split
    test: Split

    @cached_property
    def digest(self) -> str:
        """SHA-256 over shapes, pixels and labels of both splits."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            for array in (split.images, split.labels):
                digest.update(f"{array.dtype} {array.shape};".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return int(self.test.images.shape[1])

    @property
    def size(self) -> int:
        """Height (and width) of an image in pixels."""
        return int(self.test.images.shape[2])


@dataclass(frozen=True, kw_only=True)
class Dataset(Component, abc.ABC):
    """A registered data set; its fields select among its variants."""

    @property
    def protocol(self) -> DatasetCard:
        """The card, typed."""
        assert isinstance(self.card, DatasetCard)
        return self.card

    @abc.abstractmethod
    def load(self, data_root: Path | None) -> RetrievalData:
        """Read and check the files.

        Args:
            data_root: folder the user named for data sets, searched first.

        Raises:
            UserError: a file is missing or is not what it should be.
        """


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
