"""The file of an attack that is under way: a run that is stopped goes on there the next time.

It is an .npz file of numbers, in which the zip format keeps a checksum of each array:

identity  text: a hash of the cell, the code and the machine
rows      queries in a batch
seconds   time that the attack has taken
...       the arrays of ``evaluation.collected.Collected``
"""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmlbench.common.errors import UserError
from dmlbench.common.files import read_file, write_atomically
from dmlbench.common.lazy import np
from dmlbench.storage.adversarial import DAMAGED

if TYPE_CHECKING:
    import numpy.typing as npt

    Arrays = Mapping[str, npt.NDArray[Any]]

SAVE_SECONDS = 10.0  # at least, between two times that the file is written


@dataclass
class Interrupted:
    """The results of an attack so far, and the file that they are kept in.

    Attributes:
        path: the file.
        identity: a hash of the cell, the code and the machine. A file with another one is not used,
            because the numbers of one cell must not be those of two codes or machines.
        check: is called before the file is written, and may raise an error that ends the run.
        rows: queries in a batch, set by ``read``.
        seconds_before: time that earlier runs have put into what was read.
    """

    path: Path
    identity: str
    check: Callable[[], None] = lambda: None
    rows: int = 0
    seconds_before: float = 0.0
    _given_up: bool = False
    _begun: float = field(default_factory=time.monotonic)
    _saved: float = field(default_factory=time.monotonic)

    def read(self, rows: int) -> Arrays:
        """The arrays of the file; none if it is missing, of something else, or damaged (a warning).

        Args:
            rows: queries in a batch. The last bits of a number depend on it, so an attack whose
                file has another one begins again.
        """
        self.rows = rows
        try:
            with np.load(io.BytesIO(read_file(self.path)), allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
            seconds = float(found.pop("seconds"))
            made = str(found.pop("identity")), int(found.pop("rows"))
            if made != (self.identity, rows):
                return {}
        except FileNotFoundError:
            return {}
        except DAMAGED:
            warnings.warn(
                f"{self.path} is damaged or cannot be read: the attack begins again", stacklevel=2
            )
            return {}
        self.seconds_before = seconds
        return found

    def save(self, arrays: Callable[[], Arrays], last: bool) -> None:
        """Write the file, at most every ten seconds; a warning says so if that fails.

        Args:
            arrays: returns what the attack has found so far.
            last: this was the last batch. The file is written once more if the attack has taken
                ten seconds or longer, as the self-checks that follow may be interrupted, too.
        """
        now = time.monotonic()
        if self._given_up or now - (self._begun if last else self._saved) < SAVE_SECONDS:
            return
        self.check()
        content: dict[str, Any] = {"identity": self.identity, "rows": self.rows, **arrays()}
        content["seconds"] = self.seconds_before + now - self._begun
        buffer = io.BytesIO()
        np.savez(buffer, **content)
        try:
            write_atomically(self.path, buffer.getvalue())
        except UserError as error:
            self._given_up = True
            warnings.warn(f"{error}: an attack that is stopped will begin again", stacklevel=2)
        self._saved = now
