"""MNIST, and its file format: four idx files, gzipped or not, each checked by SHA-256."""

from __future__ import annotations

import abc
import gzip
import hashlib
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dmlbench.common.errors import UserError
from dmlbench.common.files import read_file
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
    import numpy.typing as npt

    from dmlbench.common.progress import Reporter
    from dmlbench.datasets.files.cache import Cache

THREAT = Threat(eps=77 / 255, alpha=3 / 255, steps=32)
MNIST = Paper(
    key="lecun1998mnist",
    title="The MNIST Database of Handwritten Digits",
    authors="LeCun, Yann and Cortes, Corinna and Burges, Christopher J. C.",
    venue="online",
    year=1998,
    url="http://yann.lecun.com/exdb/mnist",
)
FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@dataclass(frozen=True, kw_only=True)
class IdxDataset(Dataset, abc.ABC):
    """60,000 train and 10,000 test images of 28x28 in MNIST's four files.

    Attributes:
        files: name -> SHA-256 of the uncompressed content, as hosts compress it differently.
        torchvision: the class of ``torchvision.datasets`` that downloads them, and the name of
            the folder it makes.
        folder: another name of a folder in the data root that may hold them.
        debian: the folder of a Debian package that brings them; None if there is none.
    """

    files: ClassVar[dict[str, str]]
    torchvision: ClassVar[str]
    folder: ClassVar[str]
    debian: ClassVar[Path | None] = None

    def load(self, data_root: Path | None, cache: Cache | None = None) -> RetrievalData:
        """Read the files in ``data_root``, else Debian's package, else download them."""
        folder = self.locate(data_root) or self._fetch(data_root)
        arrays = {name: _read_idx(folder, name, digest) for name, digest in self.files.items()}
        train, test = (
            Split(
                arrays[f"{part}-images-idx3-ubyte"][:, None],
                arrays[f"{part}-labels-idx1-ubyte"].astype(np.int64),
            )
            for part in ("train", "t10k")
        )
        return RetrievalData(train, test)

    def download(self, data_root: Path | None, reporter: Reporter) -> Path:
        """Download by torchvision."""
        return self._fetch(data_root)

    def locate(self, data_root: Path | None) -> Path | None:
        """The folder with the files, or with some: reading it then names the missing ones.

        Of the data root, folders with the name of the set come before the files in it: those may be
        of another set, as MNIST and Fashion-MNIST give theirs the same names.
        """
        root = existing(data_root)
        places = [root / self.folder, root / self.torchvision / "raw", root]
        places += [self.debian] if self.debian else []
        return next((place for place in places if self._is_in(place)), None)

    def _is_in(self, folder: Path) -> bool:
        """True if the files lie in ``folder``; some are enough, except in torchvision's folder.

        An interrupted download of torchvision's must go on, so there all must be present.
        """
        there = [
            any((folder / f"{name}{end}").is_file() for end in ("", ".gz")) for name in self.files
        ]
        return all(there) if folder.name == "raw" else any(there)

    def _fetch(self, data_root: Path | None) -> Path:
        root = data_root or HOME
        torchvision_download(self.torchvision, self.card.name, root, self.protocol.source)
        return root / self.torchvision / "raw"


@DATASETS.register
@dataclass(frozen=True, kw_only=True)
class Mnist(IdxDataset):
    """MNIST, from files on disk or torchvision's download."""

    card = DatasetCard(
        "mnist",
        "MNIST: 60,000 train and 10,000 test images, 28x28 grey, 10 classes",
        MNIST,
        model="c2f2",
        recipe=Recipe(epochs=8, pairs=128, lr=1e-3, weight_decay=1e-7),
        threat=replace(THREAT, sp_scale=2e4),  # RobRank, attacks/advrank.py
        training_threat=TrainingThreat(eps=77 / 255, eta=32),
        train=Figures(60_000, 10),
        test=Figures(10_000, 10),
        source="'dmlbench data download mnist', or put the four idx files into mnist/ of the data "
        "root",
    )
    files = FILES
    torchvision = "MNIST"
    folder = "mnist"


def _read_idx(folder: Path, name: str, digest: str) -> npt.NDArray[np.uint8]:
    """The array in an idx file; its header gives the number of dimensions and their sizes."""
    plain, packed = folder / name, folder / f"{name}.gz"
    path = plain if plain.is_file() else packed
    try:
        content = read_file(plain) if path == plain else gzip.decompress(read_file(packed))
    except FileNotFoundError:
        raise UserError(f"{folder} lacks {name} (or {name}.gz)") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch it again") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(f"{path} is not the official file (SHA-256 differs): fetch it again")
    rank = content[3]
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
