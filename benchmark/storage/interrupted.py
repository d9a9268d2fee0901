"""The file of an attack that is under way: a run that is stopped goes on there the next time.

It is an .npz file of numbers, in which the zip format keeps a checksum of each array:

of        text: a hash of all that decides the numbers (``Interrupted.of``)
rows      queries in a batch
seconds   time that the attack has taken
...       the arrays of ``evaluation.collected.Collected``
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmlbench.common.files import read_file, write_atomically
from dmlbench.common.lazy import np
from dmlbench.storage.adversarial import DAMAGED

if TYPE_CHECKING:
    import numpy.typing as npt

    Arrays = Mapping[str, npt.NDArray[Any]]

SAVE_SECONDS = 10.0  # at least, between two times that the file is written


@dataclass
class Interrupted:
    """What an attack has found before it was interrupted, and the file that it is kept in.

    Attributes:
        path: the file.
        of: a hash of all that decides the numbers. A file with another one is not used, because
            the numbers of one cell must not be those of two codes or machines.
        seconds_before: time that earlier runs have put into what was read.
    """

    path: Path
    of: str
    seconds_before: float = 0.0
    _begun: float = field(default_factory=time.monotonic)
    _saved: float = field(default_factory=time.monotonic)

    def read(self, rows: int) -> Arrays | None:
        """The arrays of the file; None if there is none, it is damaged, or of another attack.

        Args:
            rows: queries in a batch. With another number the last bits would be others, so the
                attack begins again.
        """
        try:
            with np.load(io.BytesIO(read_file(self.path)), allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
            of, before = str(found.pop("of")), float(found.pop("seconds"))
            if (of, int(found.pop("rows"))) != (self.of, rows):
                return None
        except DAMAGED:  # or missing
            return None
        self.seconds_before = before
        return found

    def save(self, rows: int, arrays: Callable[[], Arrays], last: bool) -> None:
        """Write the file if the last time is 10 seconds ago.

        Args:
            rows: queries in a batch.
            arrays: returns what the attack has found so far.
            last: this was the last batch: the file is also written if the attack has taken more
                than 10 seconds, as what follows the attack (self-checks) may be interrupted, too.

        Raises:
            UserError: the file cannot be written.
        """
        now = time.monotonic()
        if now - (self._begun if last else self._saved) < SAVE_SECONDS:
            return
        content: dict[str, Any] = {"of": self.of, "rows": rows, **arrays()}
        content["seconds"] = self.seconds_before + now - self._begun
        buffer = io.BytesIO()
        np.savez(buffer, **content)
        write_atomically(self.path, buffer.getvalue())
        self._saved = now
