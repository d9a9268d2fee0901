"""Archives of data sets: downloaded in pieces, checked by digest, unpacked safely."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dmlbench.common.errors import UserError
from dmlbench.common.files import check_writable, open_file
from dmlbench.common.text import one_line
from dmlbench.datasets.files.places import HOME

if TYPE_CHECKING:
    from dmlbench.common.progress import Reporter

PIECE = 1 << 20
TIMEOUT = 60.0  # seconds without a byte


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
    archive only if its digest is right.

    Raises:
        UserError: the host cannot be reached, the digest is wrong, or the disk is full.
    """
    root = data_root or HOME
    check_writable(root, "--data-root")
    folder, path = root / archive.folder, root / archive.name
    if folder.exists():
        reporter.say(f"{folder} is there already; delete it to have it fetched again")
        return folder
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


def download(url: str, partial: Path, reporter: Reporter, most: int | None = None) -> None:
    """Download the rest of the file at ``url`` that is not yet in ``partial``; nothing is checked.

    Args:
        url: the address.
        partial: the file, which is continued.
        reporter: shows progress.
        most: the most bytes that the file may have; None: any number.

    Raises:
        UserError: the host cannot be reached, does not serve it, or serves more than ``most``
            bytes; ``partial`` is deleted then.
    """
    have = partial.stat().st_size if partial.is_file() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            if answer.status != 206:  # the host sends the whole file
                have = 0
            left = answer.length or 0  # None: the host does not say, or says no number
            _check_size(url, partial, have + left, most)
            title = f"download {partial.stem} (MiB)"
            with (
                partial.open("ab" if have else "wb") as file,
                reporter.task(title, (have + left) >> 20, have >> 20) as task,
            ):
                received = 0
                while piece := answer.read(PIECE):
                    _check_size(url, partial, have + received + len(piece), most)
                    file.write(piece)
                    task.advance(((received + len(piece)) >> 20) - (received >> 20))
                    received += len(piece)
        if received < left:
            raise HTTPException("the connection was cut")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing is left to send
            return
        raise UserError(f"{url} is not served (HTTP {error.code}): {_by_hand(partial)}") from None
    except (OSError, HTTPException, ValueError, OverflowError) as error:
        # the last two: nothing can be asked at this address, or where it redirects to
        reason = one_line(str(getattr(error, "reason", None) or error)).strip()
        raise UserError(
            f"{url} cannot be downloaded ({reason}); run again to go on, or {_by_hand(partial)}"
        ) from None


def _check_size(url: str, partial: Path, size: int, most: int | None) -> None:
    """UserError, and no partial file any more, if a file has more than the most bytes."""
    if most is not None and size > most:
        partial.unlink(missing_ok=True)
        raise UserError(f"{url} serves more than the {most:,} bytes that the file may have")


def check_address(url: str) -> None:
    """UserError unless ``url`` has a host and a port that can be asked, with plain characters."""
    try:
        parts = urlsplit(url)
        (host := parts.hostname or "").encode("idna")
        fine = bool(host) and url.isascii() and " " not in url and parts.port != 0
    except ValueError:  # brackets, a port or a host that none can have
        fine = False
    if not fine:
        raise UserError(f"{url!r} is no address: it needs a host, as https://example.org/weights")


def _by_hand(partial: Path) -> str:
    return f"put the file into {partial.parent} by other means"


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
