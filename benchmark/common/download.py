"""Downloads of data sets and weights, in pieces; an interrupted one continues."""

from __future__ import annotations

import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dmlbench.common.errors import UserError
from dmlbench.common.text import one_line

if TYPE_CHECKING:
    from dmlbench.common.progress import Reporter

PIECE = 1 << 20
TIMEOUT = 60.0  # seconds without a byte


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
