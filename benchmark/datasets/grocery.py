"""The Grocery Store Dataset: 5,421 smartphone photographs of 81 products in 42 coarse classes.

The official lists (train.txt, val.txt, test.txt) put every product into each of their parts, for
classification. Retrieval of unseen classes takes all images of some products to train and all
images of the others to test:

    split=class    products 0-40 train and 41-80 test, the first half and the second; the coarse
                   class "Milk" has products in both
    split=coarse   coarse classes 0-20 train and 21-41 test (products 0-43 and 44-80), so that no
                   coarse class is in both

    split=official the images of train.txt train and are the gallery that those of test.txt
                   search; all 81 products are in both, and val.txt is left out

The label is the product, in every split.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dmlbench.common.errors import UserError
from dmlbench.core.papers import Paper
from dmlbench.core.protocol import Recipe, TrainingThreat
from dmlbench.core.spec import parameter
from dmlbench.datasets.base import DATASETS, DatasetCard, Figures
from dmlbench.datasets.files.lines import numbered_lines
from dmlbench.datasets.files.repository import Repository, clone
from dmlbench.datasets.images import (
    RECIPE,
    THREAT,
    TRAINING_THREAT,
    ImageDataset,
    LabelledPath,
    Listing,
    find,
    whole,
)

if TYPE_CHECKING:
    from dmlbench.common.progress import Reporter

GROCERY = Paper(
    key="klasson2019hierarchical",
    title="A Hierarchical Grocery Store Image Dataset with Visual and Semantic Labels",
    authors="Klasson, Marcus and Zhang, Cheng and Kjellström, Hedvig",
    venue="WACV",
    year=2019,
    url="https://github.com/marcusklasson/GroceryStoreDataset",
)

REPOSITORY = Repository(
    "https://github.com/marcusklasson/GroceryStoreDataset",
    "fc80ba90f803d79d0383df52c5a4ac5de99ff6fc",
    "GroceryStoreDataset",
)
LISTS = ("train.txt", "val.txt", "test.txt")
MARKER = "classes.csv"
OFFICIAL_FILES = "fcb7b0c1cab4353c675d4768c1cbe6395eab0d1c33c24a9d5b23a8cc8fde72ac"
"""SHA-256 over the files of ``split=official``: those of val.txt are no part of it."""
FIRST_TO_TEST = {"class": 41, "coarse": 44}  # split -> number of a product


@DATASETS.register
@dataclass(frozen=True, kw_only=True)
class Grocery(ImageDataset):
    """``classes.csv``, the three lists and ``train/``, ``val/``, ``test/`` of the repository."""

    card = DatasetCard(
        "grocery",
        "Grocery Store Dataset (MIT): photographs of products, 41 train and 40 others test; "
        "split=official: those of its test list search those of its train list",
        GROCERY,
        model="resnet18",
        recipe=RECIPE,
        threat=THREAT,
        training_threat=TRAINING_THREAT,
        train=Figures(3_051, 41),
        test=Figures(2_370, 40),
        files="e3c4df05b6828178164c0cb5a15cdff43116e15f534d1383cb9af450fe957bc0",
        source=f"put a clone of {REPOSITORY.url} into the data root, at commit "
        f"{REPOSITORY.commit[:7]} ('dmlbench data download grocery', or from a bare copy: git "
        f"--git-dir=COPY archive --prefix={REPOSITORY.folder}/ {REPOSITORY.commit[:7]} | tar x)",
    )

    split: str = parameter(
        "class",
        "class: the first half of the products trains; coarse: no coarse class is in both splits; "
        "official: the images of test.txt search those of train.txt, which train too",
        choices=(*FIRST_TO_TEST, "official"),
    )

    @property
    def protocol(self) -> DatasetCard:
        """The card, with the figures of the chosen split."""
        card = super().protocol
        if self.split == "class":
            return card
        if self.split == "official":
            train = Figures(2_640, 81)
            test = Figures(2_485, 81)
            return replace(card, train=train, test=test, gallery=train, files=OFFICIAL_FILES)
        return replace(card, train=Figures(3_237, 44), test=Figures(2_184, 37))

    def locate(self, data_root: Path | None) -> Path | None:
        """The folder of ``classes.csv``."""
        name = REPOSITORY.folder
        return find(data_root, MARKER, f"{name}/dataset", "grocery/dataset", "dataset", name)

    def listing(self, root: Path) -> Listing:
        """Images in the order of the three lists; the label is the number of the product."""
        if self.split == "official":
            train, test = (tuple(_entries(root / name)) for name in (LISTS[0], LISTS[2]))
            return Listing(root, train, test, gallery=train)
        entries = [entry for name in LISTS for entry in _entries(root / name)]
        first = FIRST_TO_TEST[self.split]
        return Listing(
            root,
            tuple(e for e in entries if e[1] < first),
            tuple(e for e in entries if e[1] >= first),
        )

    def download(self, data_root: Path | None, reporter: Reporter) -> Path:
        """Fetch the commit with git."""
        return clone(REPOSITORY, data_root, reporter)


@DATASETS.register
@dataclass(frozen=True, kw_only=True)
class GroceryNight(Grocery):
    """The same photographs at 112 px, with a recipe for a night on two CPU cores.

    A pass at 112 px costs a quarter of one at 224 px, and MobileNetV2 a fifth of ResNet-18's
    multiplications. 20 epochs of 109 batches are 2,180 updates where the papers' recipe makes 7,900
    on a set of this size (CUB), so the learning rate is four times theirs. Four steps of 2/255 just
    cross the ball that the papers cross in 32. An epoch is 3,051 triplets x 3 images x 5 passes.
    """

    card = replace(
        Grocery.card,
        name="grocery-112",
        summary="grocery at 112 px, with a recipe that trains in a night on two CPU cores",
        model="mobilenet_v2",
        recipe=Recipe(epochs=20, pairs=28, lr=4e-5, weight_decay=4e-4),
        training_threat=TrainingThreat(eps=8 / 255, eta=4),
        note="112 px, MobileNetV2, 20 epochs of 28 pairs and 4 PGD steps in training, for a night "
        "on two CPU cores. The papers' recipe (224 px, 75 epochs of 56 pairs, 32 steps) is that of "
        "grocery, for a GPU",
    )

    size: int = parameter(112, "pixels a side that the network sees", at_least=32, at_most=4096)


def _entries(path: Path) -> list[LabelledPath]:
    """Read a list, whose lines are ``path, product, coarse class``."""
    found = []
    for _, line in numbered_lines(path):
        parts = line.rsplit(",", 2)
        if len(parts) != 3:
            raise UserError(f"{path}: expected 'path, product, coarse class', got {line!r}")
        found.append((parts[0].strip(), whole(parts[1].strip(), path)))
    return found
