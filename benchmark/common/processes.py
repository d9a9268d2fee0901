"""The set-up of worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def serve_parent() -> None:
    """Set up this worker process: it ignores Ctrl-C, which its parent handles, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
