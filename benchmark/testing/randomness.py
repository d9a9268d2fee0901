"""Find code that draws from a global random generator, with the line that does it."""

from __future__ import annotations

import inspect
import linecache
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from dmlbench.testing.findings import require

ADVICE = (
    "a query's numbers would depend on what ran before it, and could not be measured again; "
    "draw from a generator that is seeded with the seed and the index you are given "
    "(attacks: dmlbench.attacks.engine.targets.draw; defenses: batch.generator)"
)
States = dict[str, Any]


def states() -> States:
    """The state of each global generator, as values that can be compared."""
    numbers = np.random.get_state(legacy=False)
    assert isinstance(numbers, dict)
    return {
        "PyTorch's": torch.random.get_rng_state().numpy().tobytes(),
        "NumPy's": (numbers["state"]["key"].tobytes(), numbers["state"]["pos"]),
        "Python's": random.getstate(),
    }


@contextmanager
def no_global_randomness(what: str, sources: Iterable[object]) -> Iterator[None]:
    """FlawError if a global generator advances inside; it names the line where that is known.

    Args:
        what: what is done inside, for the message.
        sources: classes or objects; the lines of their files are watched one by one.
    """
    watch = _Watch({_file(one) for one in sources} - {None})
    before, tracer = states(), sys.gettrace()
    sys.settrace(watch.call)
    try:
        yield
    finally:
        sys.settrace(tracer)
    after = states()
    advanced = [name for name in after if after[name] != before[name]]
    places = list(dict.fromkeys(watch.found)) or [f"{what} draws from {n}" for n in advanced]
    require(not advanced, f"{'; '.join(places)} global random generator: {ADVICE}")


class _Watch:
    """A trace function that compares the generators after each line of the watched files."""

    def __init__(self, files: set[str | None]) -> None:
        self.files, self.known, self.found = files, states(), list[str]()

    def call(self, frame: FrameType, event: str, arg: Any) -> Any:
        """A function begins: its lines are watched if its file is."""
        if frame.f_code.co_filename not in self.files:
            return None
        if frame.f_back is not None:  # drawn by its caller, on the line of this call
            self.compare(frame.f_back.f_code.co_filename, frame.f_back.f_lineno)
        line = frame.f_lineno

        def lines(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal line
            self.compare(frame.f_code.co_filename, line)
            line = frame.f_lineno
            return lines

        return lines

    def compare(self, file: str, line: int) -> None:
        """Note the line if a generator is not as it was last time."""
        now = states()
        for name in now:
            if now[name] != self.known[name]:
                code = linecache.getline(file, line).strip()
                self.found.append(f"{Path(file).name}:{line} (`{code}`) draws from {name}")
        self.known = now


def _file(source: object) -> str | None:
    try:
        return inspect.getsourcefile(source if isinstance(source, type) else type(source))
    except (TypeError, OSError):
        return None
