"""Fashion-MNIST, and ``fashion-mini``, the stratified subset of it inside the package."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dmlbench.common.errors import UserError
from dmlbench.common.lazy import np
from dmlbench.core.papers import Paper
from dmlbench.core.protocol import Recipe, TrainingThreat
from dmlbench.datasets.base import DATASETS, Dataset, DatasetCard, Figures, RetrievalData, Split
from dmlbench.datasets.mnist import THREAT, IdxDataset

if TYPE_CHECKING:
    from dmlbench.datasets.files.cache import Cache

FASHION = Paper(
    key="xiao2017fashion",
    title="Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
    authors="Xiao, Han and Rasul, Kashif and Vollgraf, Roland",
    venue="arXiv",
    year=2017,
    url="https://arxiv.org/abs/1708.07747",
)

EMBEDDED = Path(__file__).parent / "fashion_mini" / "fashion-mini.npz"
EMBEDDED_SHA256 = "28cf2a50d6c4e43f846a0c269fbdbe6219ea7a6ffa74bce315af0f529d510d3b"

FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


@DATASETS.register
@dataclass(frozen=True, kw_only=True)
class Fashion(IdxDataset):
    """Fashion-MNIST, from files on disk or torchvision's download."""

    card = DatasetCard(
        "fashion",
        "Fashion-MNIST: 60,000 train and 10,000 test images, 28x28 grey, 10 classes",
        FASHION,
        model="c2f2",
        recipe=Recipe(epochs=8, pairs=128, lr=1e-3, weight_decay=1e-7),
        threat=THREAT,
        training_threat=TrainingThreat(eps=77 / 255, eta=32),
        train=Figures(60_000, 10),
        test=Figures(10_000, 10),
        source="install Debian's package dataset-fashion-mnist, or 'dmlbench data download "
        "fashion', or put the four idx files into a folder and name it with --data-root",
    )
    known_digest = "e9ac36baec4d70c4238fa6d265c937bc2866a480b633952fabda923fb66b8338"
    files = FILES
    torchvision = "FashionMNIST"
    folder = "fashion-mnist"
    debian = Path("/usr/share/datasets/fashion-mnist")


@DATASETS.register
@dataclass(frozen=True, kw_only=True)
class FashionMini(Dataset):
    """The subset in ``fashion_mini/``, which ``make.py`` in that folder made."""

    card = DatasetCard(
        "fashion-mini",
        "embedded stratified subset of Fashion-MNIST: 6,000 train and 1,000 test images",
        FASHION,
        model="lenet",
        recipe=Recipe(epochs=4, pairs=32, lr=1e-3, weight_decay=1e-7),
        threat=THREAT,
        training_threat=TrainingThreat(eps=77 / 255, eta=8),
        train=Figures(6_000, 10),
        test=Figures(1_000, 10),
        note="LeNet, 4 epochs of 32 pairs, eta 8, alpha 12/255: quick, not the papers' protocol",
        literature="fashion",
    )
    known_digest = "f3953aee6305469458e54083cd0518a099a8c9cdaaf9e7ca170b719b749dd71e"

    def locate(self, data_root: Path | None) -> Path:
        """The folder in the package."""
        return EMBEDDED.parent

    def load(self, data_root: Path | None, cache: Cache | None = None) -> RetrievalData:
        """Read it from the package; ``data_root`` does not matter."""
        try:
            content = EMBEDDED.read_bytes()
        except OSError as error:
            raise UserError(f"no embedded data set ({error}): install dmlbench again") from None
        if hashlib.sha256(content).hexdigest() != EMBEDDED_SHA256:
            raise UserError(f"{EMBEDDED} is damaged (SHA-256 differs): install dmlbench again")
        with np.load(EMBEDDED, allow_pickle=False) as arrays:
            return RetrievalData(
                Split(arrays["train_images"], arrays["train_labels"].astype(np.int64)),
                Split(arrays["test_images"], arrays["test_labels"].astype(np.int64)),
            )
