"""CIFAR-10 and CIFAR-100, read and downloaded by torchvision."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dmlbench.common.errors import UserError
from dmlbench.common.lazy import np
from dmlbench.core.papers import Paper
from dmlbench.core.protocol import Recipe, Threat, TrainingThreat
from dmlbench.datasets.base import (
    DATASETS,
    Dataset,
    DatasetCard,
    Figures,
    RetrievalData,
    Split,
)
from dmlbench.datasets.files.places import HOME, existing, torchvision_download

if TYPE_CHECKING:
    from dmlbench.common.progress import Reporter
    from dmlbench.datasets.files.cache import Cache

CIFAR = Paper(
    key="krizhevsky2009learning",
    title="Learning Multiple Layers of Features from Tiny Images",
    authors="Krizhevsky, Alex",
    venue="University of Toronto",
    year=2009,
    url="https://www.cs.toronto.edu/~kriz/cifar.html",
)

RECIPE = Recipe(epochs=8, pairs=128, lr=1e-3, weight_decay=1e-7)
THREAT = Threat(eps=8 / 255, alpha=3 / 255, steps=32)
TRAINING_THREAT = TrainingThreat(eps=8 / 255, eta=32, alpha=1 / 255)
NOTE = "the 28x28 recipe under the 224x224 threat; no paper of the suite uses this data set"
SOURCE = "'dmlbench data download {}', or unpack {} (https://www.cs.toronto.edu/~kriz/cifar.html) \
in the data root"


@dataclass(frozen=True, kw_only=True)
class Cifar(Dataset, abc.ABC):
    """CIFAR-10 or CIFAR-100: 50,000 train and 10,000 test images, 32x32 RGB.

    Attributes:
        torchvision: the class of ``torchvision.datasets`` that reads and downloads it.
        folder: the folder of its files in the data root.
    """

    torchvision: ClassVar[str]
    folder: ClassVar[str]

    def locate(self, data_root: Path | None) -> Path | None:
        """The folder of the unpacked archive in the data root."""
        folder = existing(data_root) / self.folder
        return folder if folder.is_dir() else None

    def load(self, data_root: Path | None, cache: Cache | None = None) -> RetrievalData:
        """Read the files in ``data_root``, or download them. Torchvision checks their MD5."""
        import torchvision.datasets

        folder = self.locate(data_root) or self._fetch(data_root)
        reader = getattr(torchvision.datasets, self.torchvision)
        try:
            parts = [reader(str(folder.parent), train=train) for train in (True, False)]
        except (RuntimeError, OSError):
            raise UserError(
                f"{folder} is incomplete or damaged (MD5 differs): {self.protocol.source}"
            ) from None
        train, test = (
            Split(
                np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)),
                np.array(part.targets, np.int64),
            )
            for part in parts
        )
        return RetrievalData(train, test)

    def download(self, data_root: Path | None, reporter: Reporter) -> Path:
        """Download by torchvision."""
        return self._fetch(data_root)

    def _fetch(self, data_root: Path | None) -> Path:
        root = data_root or HOME
        torchvision_download(self.torchvision, self.card.name, root, self.protocol.source)
        return root / self.folder


@DATASETS.register
@dataclass(frozen=True, kw_only=True)
class Cifar10(Cifar):
    """CIFAR-10: ten classes."""

    card = DatasetCard(
        "cifar10",
        "CIFAR-10: 50,000 train and 10,000 test images, 32x32 RGB, 10 classes",
        CIFAR,
        model="c2f2",
        recipe=RECIPE,
        threat=THREAT,
        training_threat=TRAINING_THREAT,
        note=NOTE,
        train=Figures(50_000, 10),
        test=Figures(10_000, 10),
        source=SOURCE.format("cifar10", "cifar-10-python.tar.gz"),
    )
    torchvision = "CIFAR10"
    folder = "cifar-10-batches-py"


@DATASETS.register
@dataclass(frozen=True, kw_only=True)
class Cifar100(Cifar):
    """CIFAR-100: its hundred fine classes."""

    card = DatasetCard(
        "cifar100",
        "CIFAR-100: 50,000 train and 10,000 test images, 32x32 RGB, 100 classes",
        CIFAR,
        model="c2f2",
        recipe=RECIPE,
        threat=THREAT,
        training_threat=TRAINING_THREAT,
        note=NOTE,
        train=Figures(50_000, 100),
        test=Figures(10_000, 100),
        source=SOURCE.format("cifar100", "cifar-100-python.tar.gz"),
    )
    torchvision = "CIFAR100"
    folder = "cifar-100-python"
