"""Fashion-MNIST in full, and the stratified subset of it that the package embeds."""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dmlbench.datasets.base import DATASETS, Dataset, DatasetCard, RetrievalData, Split, stratified
from dmlbench.errors import UserError
from dmlbench.lazy import np
from dmlbench.papers import FASHION
from dmlbench.recipe import Recipe, Threat, TrainingThreat

if TYPE_CHECKING:
    import numpy.typing as npt

# SHA-256 of each file's content, uncompressed: distributors compress it differently.
FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist
SUBSET_SEED = 0

EMBEDDED = Path(__file__).parent / "fashion_mini" / "fashion-mini.npz"
EMBEDDED_SHA256 = "28cf2a50d6c4e43f846a0c269fbdbe6219ea7a6ffa74bce315af0f529d510d3b"

THREAT = Threat(eps=77 / 255, alpha=3 / 255, steps=32)


@DATASETS.register
@dataclass(frozen=True, kw_only=True)
class Fashion(Dataset):
    """The 60,000 + 10,000 images, from files on disk or torchvision's download."""

    card = DatasetCard(
        "fashion",
        "Fashion-MNIST: 60,000 train and 10,000 test images, 28x28 grey, 10 classes",
        FASHION,
        model="c2f2",
        recipe=Recipe(epochs=8, pairs=128, lr=1e-3, weight_decay=1e-7),
        threat=THREAT,
        training_threat=TrainingThreat(eps=77 / 255, eta=32),
    )

    def load(self, data_root: Path | None) -> RetrievalData:
        """From ``data_root``, else Debian's package, else a download into ``data_root``."""
        folder = _find(data_root) or _download(data_root)
        arrays = {name: _read_idx(folder, name) for name in FILES}
        splits = [
            Split(
                arrays[f"{part}-images-idx3-ubyte"][:, None],
                arrays[f"{part}-labels-idx1-ubyte"].astype(np.int64),
            )
            for part in ("train", "t10k")
        ]
        return RetrievalData(*splits)


@DATASETS.register
@dataclass(frozen=True, kw_only=True)
class FashionMini(Dataset):
    """The subset in ``fashion_mini/``, made by the script beside it."""

    card = DatasetCard(
        "fashion-mini",
        "embedded stratified subset of Fashion-MNIST: 6,000 train and 1,000 test images",
        FASHION,
        model="lenet",
        recipe=Recipe(epochs=4, pairs=32, lr=1e-3, weight_decay=1e-7),
        threat=THREAT,
        training_threat=TrainingThreat(eps=77 / 255, eta=8),
        note="LeNet, 4 epochs of 32 pairs, eta 8, alpha 12/255: quick, not the papers' protocol",
        literature="fashion",
    )

    def load(self, data_root: Path | None) -> RetrievalData:
        """From the package; ``data_root`` is not looked at."""
        try:
            content = EMBEDDED.read_bytes()
        except OSError as error:
            raise UserError(f"no embedded data set ({error}): reinstall dmlbench") from None
        if hashlib.sha256(content).hexdigest() != EMBEDDED_SHA256:
            raise UserError(f"{EMBEDDED} is corrupt (SHA-256 differs): reinstall dmlbench")
        with np.load(EMBEDDED, allow_pickle=False) as arrays:
            return RetrievalData(
                Split(arrays["train_images"], arrays["train_labels"].astype(np.int64)),
                Split(arrays["test_images"], arrays["test_labels"].astype(np.int64)),
            )


def subset(full: RetrievalData, train: int, test: int) -> RetrievalData:
    """The stratified subset of Fashion-MNIST with that many images a split."""
    return RetrievalData(
        stratified(full.train, train, SUBSET_SEED), stratified(full.test, test, SUBSET_SEED)
    )


def _find(data_root: Path | None) -> Path | None:
    if data_root is not None and not data_root.is_dir():
        raise UserError(f"--data-root {data_root} is not a folder")
    roots = [] if data_root is None else [data_root]
    places = [root / part for root in roots for part in _LAYOUTS] + [DEBIAN]
    return next((place for place in places if _holds_files(place)), None)


_LAYOUTS = (".", "fashion-mnist", "FashionMNIST/raw")


def _holds_files(folder: Path) -> bool:
    """Some of the files, so that a missing one is named; torchvision's folder only if whole, so
    that an interrupted download goes on.
    """
    there = [any((folder / f"{name}{end}").is_file() for end in ("", ".gz")) for name in FILES]
    return all(there) if folder.name == "raw" else any(there)


def _download(data_root: Path | None) -> Path:
    from torchvision.datasets import FashionMNIST

    root = data_root or Path.home() / ".cache" / "dmlbench"
    try:
        FashionMNIST(str(root), train=True, download=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"Fashion-MNIST is not in {data_root or DEBIAN} and cannot be downloaded ({reason}): "
            "install Debian's package dataset-fashion-mnist, or put the four idx files into a "
            "folder and name it with --data-root"
        ) from None
    return root / "FashionMNIST" / "raw"


def _read_idx(folder: Path, name: str) -> npt.NDArray[np.uint8]:
    plain, packed = folder / name, folder / f"{name}.gz"
    path = plain if plain.is_file() else packed
    try:
        content = plain.read_bytes() if path == plain else gzip.decompress(packed.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{folder} lacks {name} (or {name}.gz)") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch it again") from None
    if hashlib.sha256(content).hexdigest() != FILES[name]:
        raise UserError(f"{path} is not Fashion-MNIST's (SHA-256 differs): fetch it again")
    rank = content[3]
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
