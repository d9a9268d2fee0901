"""The log of a training run: JSON lines, and TensorBoard where it is asked for.

    log.jsonl     a line a step (epoch, step, loss, hardness, spread, images_per_second) and one an
                  epoch (its means, passes_saved, R@1 where it was validated)
    tensorboard/  the same numbers against the step

Both lie in the model's folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmlbench.common.errors import UserError
from dmlbench.common.files import write_atomically

LOG, TENSORBOARD = "log.jsonl", "tensorboard"
Numbers = Mapping[str, float | None]


class TrainingLog:
    """Goes on after the epochs that are finished; lines of an epoch that was cut off are dropped.

    Args:
        folder: of the model; None writes nothing.
        epochs: how many are finished.
        steps: in an epoch.
        tensorboard: write event files too.

    Raises:
        UserError: TensorBoard is wanted and not installed, or the log cannot be written.
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
        """What a step gave; ``total`` counts steps from the beginning."""
        self._write("step", total, {"epoch": epoch, "step": step}, found)

    def epoch(self, total: int, epoch: int, found: Numbers) -> None:
        """What an epoch gave."""
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
        """Let go of the files."""
        if self._writer is not None:
            self._writer.close()


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


def _epoch(line: str) -> float:
    """The epoch of a line; infinity for one that a kill has torn."""
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
