"""MNIST's file format: four idx files, gzipped or not, each checked by SHA-256."""

from __future__ import annotations

import abc
import gzip
import hashlib
import struct
import sys
import zlib
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dmlbench.common.errors import UserError
from dmlbench.common.lazy import np
from dmlbench.core.protocol import Threat
from dmlbench.datasets.base import HOME, Dataset, RetrievalData, Split, existing

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmlbench.common.progress import Reporter
    from dmlbench.datasets.files.cache import Cache

THREAT = Threat(eps=77 / 255, alpha=3 / 255, steps=32)


@dataclass(frozen=True, kw_only=True)
class IdxDataset(Dataset, abc.ABC):
    """60,000 train and 10,000 test images of 28x28 in MNIST's four files.

    Attributes:
        files: name -> SHA-256 of its content, uncompressed: distributors compress it differently.
        torchvision: the class of torchvision.datasets that downloads them, and its folder.
        folder: another name that the folder of the files may have in the data root.
        debian: where a package of Debian's puts them.
    """

    files: ClassVar[dict[str, str]]
    torchvision: ClassVar[str]
    folder: ClassVar[str]
    debian: ClassVar[Path | None] = None

    def load(self, data_root: Path | None, cache: Cache | None = None) -> RetrievalData:
        """From ``data_root``, else Debian's package, else a download into ``data_root``."""
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
        """By torchvision."""
        return self._fetch(data_root)

    def locate(self, data_root: Path | None) -> Path | None:
        """The folder that holds the files, or some of them, so that a missing one is named."""
        root = existing(data_root)
        places = [root / part for part in (".", self.folder, f"{self.torchvision}/raw")]
        places += [self.debian] if self.debian else []
        return next((place for place in places if self._is_in(place)), None)

    def _is_in(self, folder: Path) -> bool:
        """Torchvision's folder counts only if whole, so that an interrupted download goes on."""
        there = [
            any((folder / f"{name}{end}").is_file() for end in ("", ".gz")) for name in self.files
        ]
        return all(there) if folder.name == "raw" else any(there)

    def _fetch(self, data_root: Path | None) -> Path:
        import torchvision.datasets

        root = data_root or HOME
        try:
            with redirect_stdout(sys.stderr):  # torchvision tells its progress
                getattr(torchvision.datasets, self.torchvision)(str(root), download=True)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self.card.name} is not in {root} and cannot be downloaded ({reason}): "
                f"{self.protocol.source}"
            ) from None
        return root / self.torchvision / "raw"


def _read_idx(folder: Path, name: str, digest: str) -> npt.NDArray[np.uint8]:
    plain, packed = folder / name, folder / f"{name}.gz"
    path = plain if plain.is_file() else packed
    try:
        content = plain.read_bytes() if path == plain else gzip.decompress(packed.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{folder} lacks {name} (or {name}.gz)") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch it again") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(f"{path} is not the official file (SHA-256 differs): fetch it again")
    rank = content[3]
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
