"""Stanford Online Products: 11,318 products are for training, 11,316 for testing."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    LabelledPath,
    Listing,
    find,
    table,
    whole,
)

if TYPE_CHECKING:
    from dmlbench.common.progress import Reporter

SOP = Paper(
    key="song2016deep",
    title="Deep Metric Learning via Lifted Structured Feature Embedding",
    authors="Song, Hyun Oh and Xiang, Yu and Jegelka, Stefanie and Savarese, Silvio",
    venue="CVPR",
    year=2016,
    url="https://arxiv.org/abs/1511.06452",
)

ARCHIVE = Archive(
    "https://ftp.cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip",
    "b04fa78210e69fab050ce73939550e1cd0f96890bdd98ec9fee732c3b756ef48",
    "Stanford_Online_Products",
)
"""The SHA-256 is that of TensorFlow Datasets (stanford_online_products/checksums.tsv)."""


@DATASETS.register
@dataclass(frozen=True, kw_only=True)
class Products(ImageDataset):
    """``Ebay_train.txt``, ``Ebay_test.txt`` and the twelve folders of the official archive."""

    card = DatasetCard(
        "sop",
        "Stanford Online Products: 11,318 products train and 11,316 others test",
        SOP,
        model="resnet18",
        recipe=RECIPE,
        threat=replace(THREAT, sp_scale=7e4),
        training_threat=replace(TRAINING_THREAT, ics=0.05),
        train=Figures(59_551, 11_318),
        test=Figures(60_502, 11_316),
        recalls=(1, 2, 10, 100, 1000),
        source="unpack Stanford_Online_Products.zip (https://cvgl.stanford.edu/projects/"
        "lifted_struct, or 'dmlbench data download sop') in the data root",
    )

    def locate(self, data_root: Path | None) -> Path | None:
        """The folder of ``Ebay_train.txt``."""
        return find(data_root, "Ebay_train.txt", "Stanford_Online_Products", "sop")

    def listing(self, root: Path) -> Listing:
        """Images in the order of the lists; label = class_id - 1."""
        return Listing(root, _entries(root / "Ebay_train.txt"), _entries(root / "Ebay_test.txt"))

    def download(self, data_root: Path | None, reporter: Reporter) -> Path:
        """Download from Stanford."""
        return fetch(ARCHIVE, data_root, reporter)


def _entries(path: Path) -> tuple[LabelledPath, ...]:
    """Read a list: a header, then lines ``image_id class_id super_class_id path``."""
    header, *rows = table(path, "IMAGE CLASS SUPERCLASS PATH") or [[]]
    if header[:2] != ["image_id", "class_id"]:
        raise UserError(f"{path} does not begin with 'image_id class_id super_class_id path'")
    return tuple((name, whole(label, path) - 1) for _, label, _, name in rows)
