"""Messages for a name that is not known: close ones, and all there are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``did you mean 'ca+' or 'ca-'? ``, with the names closest to ``name``; empty if none is."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.65)
    return f"did you mean {' or '.join(map(repr, close))}? " if close else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """``unknown attack 'ca': did you mean 'ca+' or 'ca-'? available: ca+, ca-, ...``."""
    names = list(known)
    listed = f"available: {', '.join(names)}" if names else "there are none"
    return f"unknown {kind} {name!r}: {did_you_mean(name, names)}{listed}"
