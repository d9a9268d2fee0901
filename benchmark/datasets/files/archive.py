"""Archives of data sets: downloaded, checked by digest, unpacked safely."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dmlbench.common.download import download
from dmlbench.common.errors import UserError
from dmlbench.common.files import check_writable, locked, open_file
from dmlbench.datasets.files.places import HOME

if TYPE_CHECKING:
    from dmlbench.common.progress import Reporter


@dataclass(frozen=True)
class Archive:
    """A tar or zip file on a host.

    Attributes:
        url: its address.
        digest: its published SHA-256, or MD5 where no other is known, in hex.
        folder: the folder inside that holds the data set.
    """

    url: str
    digest: str
    folder: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]

    @property
    def algorithm(self) -> str:
        """The hash function of the digest, which its length tells."""
        return {32: "MD5", 64: "SHA-256"}[len(self.digest)]

    def matches(self, path: Path) -> bool:
        """True if the file at ``path`` has the published digest."""
        with open_file(path) as file:
            found = hashlib.file_digest(file, self.algorithm.replace("-", "").lower())
        return found.hexdigest() == self.digest


def fetch(archive: Archive, data_root: Path | None, reporter: Reporter) -> Path:
    """Download and unpack ``archive`` into the data root; returns its folder.

    An interrupted download continues. A folder or an archive that is there already is used; the
    archive only if its digest is right. If two processes need it, one fetches it and the other
    waits.

    Raises:
        UserError: the host cannot be reached, the digest is wrong, or the disk is full.
    """
    root = data_root or HOME
    check_writable(root, "--data-root")
    folder = root / archive.folder
    if folder.exists():
        reporter.say(f"{folder} is there already; delete it to have it fetched again")
        return folder
    busy = f"another process is fetching {archive.name}"
    with locked(root / f".{archive.name}.lock", reporter.say, busy):
        return folder if folder.exists() else _fetch(archive, root, reporter)


def _fetch(archive: Archive, root: Path, reporter: Reporter) -> Path:
    folder, path = root / archive.folder, root / archive.name
    if not path.is_file():
        partial = path.with_name(f"{path.name}.part")
        download(archive.url, partial, reporter)
        if not archive.matches(partial):
            partial.unlink()
            wrong = f"{archive.algorithm} differs"
            raise UserError(f"{archive.url} served a damaged file ({wrong}): run again")
        partial.replace(path)
    elif not archive.matches(path):
        wrong = f"{archive.algorithm} differs"
        raise UserError(f"{path} is not the official file ({wrong}): delete it and run again")
    reporter.say(f"unpacking {path}, which you may delete afterwards")
    _unpack(path, archive.folder, root)
    return folder


def _unpack(path: Path, wanted: str, root: Path) -> None:
    """Unpack into a temporary folder and rename it, so that an interruption leaves no half folder.

    Files that would lie outside the folder, links to the outside and devices are refused (tar's
    ``data`` filter) or cannot occur (zip).
    """
    if not hasattr(tarfile, "data_filter"):
        raise UserError(f"unpacking safely takes Python 3.11.4 or newer; unpack {path} by hand")
    temporary = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=root))
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                archive.extractall(temporary)
        else:
            with tarfile.open(path) as archive:
                archive.extractall(temporary, filter="data")
        (temporary / wanted).replace(root / wanted)
    except FileNotFoundError:
        raise UserError(f"{path} holds no folder {wanted}") from None
    except Exception as error:  # the readers raise many kinds on broken bytes
        raise UserError(f"{path} cannot be unpacked: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
