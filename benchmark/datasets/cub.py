"""CUB-200-2011, birds: the first 100 species are for training, the last 100 for testing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dmlbench.common.errors import UserError
from dmlbench.core.papers import Paper
from dmlbench.datasets.base import DATASETS, DatasetCard, Figures
from dmlbench.datasets.files.archive import Archive, fetch
from dmlbench.datasets.images import (
    RECIPE,
    THREAT,
    TRAINING_THREAT,
    ImageDataset,
    Listing,
    find,
    table,
    whole,
)

if TYPE_CHECKING:
    from dmlbench.common.progress import Reporter

CUB = Paper(
    key="wah2011cub",
    title="The Caltech-UCSD Birds-200-2011 Dataset",
    authors="Wah, Catherine and Branson, Steve and Welinder, Peter and Perona, Pietro and "
    "Belongie, Serge",
    venue="Caltech",
    year=2011,
    url="https://data.caltech.edu/records/65de6-vp158",
)

ARCHIVE = Archive(
    "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
    "97eceeb196236b17998738112f37df78",
    "CUB_200_2011",
)
TRAIN_CLASSES = 100


@DATASETS.register
@dataclass(frozen=True, kw_only=True)
class Birds(ImageDataset):
    """``images.txt``, ``image_class_labels.txt`` and ``images/`` of the official archive."""

    card = DatasetCard(
        "cub",
        "CUB-200-2011: birds, 100 species train and 100 others test",
        CUB,
        model="resnet18",
        recipe=RECIPE,
        threat=THREAT,
        training_threat=TRAINING_THREAT,
        train=Figures(5_864, 100),
        test=Figures(5_924, 100),
        recalls=(1, 2, 4, 8),
        source="unpack CUB_200_2011.tgz (https://data.caltech.edu/records/65de6-vp158, or "
        "'dmlbench data download cub') in the data root",
    )

    def locate(self, data_root: Path | None) -> Path | None:
        """The folder of ``images.txt``."""
        return find(data_root, "images.txt", "CUB_200_2011", "cub")

    def listing(self, root: Path) -> Listing:
        """Images in the order of ``images.txt``; label = class id - 1."""
        path = root / "image_class_labels.txt"
        labels = {image: whole(label, path) - 1 for image, label in table(path, "IMAGE CLASS")}
        named = table(root / "images.txt", "IMAGE PATH")
        unlabelled = [name for image, name in named if image not in labels]
        if unlabelled:
            raise UserError(f"{path} has no label for {unlabelled[0]}")
        entries = [(f"images/{name}", labels[image]) for image, name in named]
        return Listing(
            root,
            tuple(e for e in entries if e[1] < TRAIN_CLASSES),
            tuple(e for e in entries if e[1] >= TRAIN_CLASSES),
        )

    def download(self, data_root: Path | None, reporter: Reporter) -> Path:
        """Download from Caltech."""
        return fetch(ARCHIVE, data_root, reporter)
