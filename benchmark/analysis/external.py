"""The people who hand in adversarial images from outside: their name and link, in a row's spec.

A cell of such images has the attack ``external:file=<digest>`` and, resolved,
``external:by="Jane Doe",link="https://...",eps=77/255,file=<digest>``, which is all that a CSV
carries. Names and links may come from anyone, so they are checked when they are given and again
when they are read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from dmlbench.common.errors import UserError
from dmlbench.core import spec

KIND = "external"
LONGEST_NAME, LONGEST_LINK = 100, 300
_LINK = re.compile(r"https?://[A-Za-z0-9._~:/?#@!$&+,;=%-]+")  # no quotes, brackets or spaces


@dataclass(frozen=True)
class Contributor:
    """Someone who handed in images.

    Attributes:
        by: a name on one line.
        link: an address that begins with http:// or https://, of a paper or of code; may be empty.

    Raises:
        UserError: from ``check``, for a name or a link that is not allowed.
    """

    by: str
    link: str = ""

    def __str__(self) -> str:
        return f"{self.by} ({self.link})" if self.link else self.by

    def check(self) -> None:
        """UserError unless name and link are allowed."""
        named = isinstance(self.by, str) and self.by.strip()
        if not named or not self.by.isprintable() or len(self.by) > LONGEST_NAME:
            raise UserError(
                f"--by must be a name of 1 to {LONGEST_NAME} printable characters, got {self.by!r}"
            )
        if self.link and not (isinstance(self.link, str) and _is_link(self.link)):
            raise UserError(
                f"--link must be an address that begins with https:// or http://, of at most "
                f"{LONGEST_LINK} characters, got {self.link!r}"
            )

    def spelt(self, eps: str, sha256: str) -> str:
        """The resolved spec of their images."""
        pairs = [f"by={spec.quoted(self.by)}"]
        pairs += [f"link={spec.quoted(self.link)}"] * bool(self.link)
        return f"{KIND}:{','.join(pairs)},eps={eps},file={sha256}"


def read(resolved: str) -> Contributor | None:
    """The contributor in the resolved spec of a row; None if it is of something else.

    What is not allowed in a name or a link is left out.
    """
    if not resolved.startswith(f"{KIND}:"):
        return None
    try:
        pairs = spec.split_pairs(resolved.partition(":")[2], KIND)
    except UserError:
        pairs = {}
    by = "".join(filter(str.isprintable, spec.unquoted(pairs.get("by", ""))))[:LONGEST_NAME]
    link = spec.unquoted(pairs.get("link", ""))
    return Contributor(by.strip() or "someone", link if _is_link(link) else "")


def _is_link(text: str) -> bool:
    if len(text) > LONGEST_LINK or not _LINK.fullmatch(text):
        return False
    try:
        return bool(urlsplit(text).hostname)
    except ValueError:
        return False
