"""The log of a training run: JSON lines, and event files of TensorBoard on request.

    log.jsonl     one line for each step (epoch, step, loss, hardness, mean_cosine,
                  images_per_second) and one for each epoch (means, passes_saved, and R@1 if it
                  was measured)
    tensorboard/  the same numbers by step

Both lie in the folder of the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmlbench.common.errors import UserError
from dmlbench.common.files import write_atomically
from dmlbench.storage.checkpoint import LOG

TENSORBOARD = "tensorboard"
Numbers = Mapping[str, float | None]


class TrainingLog:
    """Writes the log, and continues it when an interrupted training is resumed.

    Lines of an epoch that was interrupted are removed.

    Args:
        folder: the folder of the model; None: write nothing.
        epochs: number of epochs that are finished.
        steps: number of steps in an epoch.
        tensorboard: write event files too.

    Raises:
        UserError: TensorBoard is requested but not installed, or the log cannot be written.
    """

    def __init__(self, folder: Path | None, epochs: int, steps: int, tensorboard: bool) -> None:
        self._path = None if folder is None else folder / LOG
        self._writer: Any = None
        if folder is None or self._path is None:
            return
        kept = [line for line in _lines(self._path) if _epoch(line) <= epochs]
        write_atomically(self._path, "".join(f"{line}\n" for line in kept).encode())
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise UserError(
                    "--tensorboard needs TensorBoard: pip install 'dmlbench[tensorboard]'"
                ) from None
            self._writer = SummaryWriter(str(folder / TENSORBOARD), purge_step=epochs * steps + 1)

    def step(self, total: int, epoch: int, step: int, found: Numbers) -> None:
        """Write the numbers of a step; ``total`` is its number in the whole training."""
        self._write("step", total, {"epoch": epoch, "step": step}, found)

    def epoch(self, total: int, epoch: int, found: Numbers) -> None:
        """Write the means of an epoch; ``total`` is the number of steps up to its end."""
        self._write("epoch", total, {"epoch": epoch}, found)

    def _write(self, kind: str, total: int, when: Mapping[str, int], found: Numbers) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("a") as file:
                file.write(json.dumps({**when, **found}) + "\n")
        except OSError as error:
            raise UserError(f"{self._path} cannot be written: {error.strerror}") from None
        if self._writer is not None:
            for name, value in found.items():
                if value is not None:
                    self._writer.add_scalar(f"{kind}/{name}", value, total)

    def close(self) -> None:
        """Close the event files."""
        if self._writer is not None:
            self._writer.close()


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


def _epoch(line: str) -> float:
    """Return the epoch of a line; infinity for one that a killed process left incomplete."""
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
