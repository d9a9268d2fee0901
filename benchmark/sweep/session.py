"""Settings that all tasks of a run share, and functions that store results. Imports no torch."""

from __future__ import annotations

import time
import traceback
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dmlbench.common.errors import CellError, UserError
from dmlbench.common.progress import Reporter
from dmlbench.compute.device import Compute
from dmlbench.compute.provenance import provenance
from dmlbench.datasets.base import Dataset, RetrievalData
from dmlbench.datasets.files.cache import Cache
from dmlbench.storage.store import Cell, Store

if TYPE_CHECKING:
    from dmlbench.evaluation.evaluator import Measurement


@dataclass(frozen=True)
class Session:
    """Settings that all tasks of a run share.

    Attributes:
        dataset: the data set.
        data_root: folder of data sets that is searched first; None: only the usual folders.
        cache: folder of decoded images; None: the default one.
        store: the results folder.
        compute: device, batch size, threads and precision.
        reporter: receives progress and messages.
    """

    dataset: Dataset
    data_root: Path | None
    cache: Path | None
    store: Store
    compute: Compute
    reporter: Reporter

    @cached_property
    def data(self) -> RetrievalData:
        """The images; they are read when this is first used.

        Raises:
            UserError: they are not available, or their digest is not the declared one.
        """
        data = self.dataset.load(self.data_root, Cache(self.cache, self.reporter))
        known = self.dataset.known_digest
        if known not in (None, data.digest):
            raise UserError(
                f"data set {self.dataset.card.name} has digest {data.digest[:16]}, but declares "
                f"{str(known)[:16]}: its known_digest is wrong"
            )
        return data

    @property
    def digest(self) -> str:
        """The digest of the content of the data; the images are read only if it is not declared."""
        return self.dataset.known_digest or self.data.digest


@dataclass(frozen=True)
class Stopwatch:
    """The start of a task, and the time since then.

    The time is measured with a monotonic clock, because the system clock may jump.
    """

    started: float = field(default_factory=time.time)
    _monotonic: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """The time since the start."""
        return time.monotonic() - self._monotonic

    @classmethod
    def ended(cls, seconds: float) -> Stopwatch:
        """Create a stopwatch that was started ``seconds`` ago."""
        return cls(time.time() - seconds, time.monotonic() - seconds)


def store_success(session: Session, cell: Cell, found: Measurement, watch: Stopwatch) -> None:
    """Store the result of a measured cell."""
    result = {
        "status": "ok",
        "metrics": {name: asdict(estimate) for name, estimate in found.metrics.items()},
        "findings": found.findings,
        "started": watch.started,
        "seconds": watch.seconds,
        "provenance": provenance(session.compute.torch_device()),
    }
    session.store.put(cell | result, found.outcomes)


def store_failure(
    session: Session, cell: Cell, title: str, error: BaseException, watch: Stopwatch
) -> None:
    """Warn that a cell has failed, and store it as failed unless a result is stored already.

    Args:
        session: settings of the run.
        cell: the cell.
        title: name of its task, for the message.
        error: the cause. It has no traceback if the process that did the task is dead.
        watch: the start of the task.
    """
    kind = "" if isinstance(error, UserError | CellError) else f"{type(error).__name__}: "
    gone = error.__traceback__ is None
    result = {
        "status": "failed",
        "error": f"{kind}{error}",
        "exception": {
            "type": type(error).__name__,
            "traceback": None if gone else "".join(traceback.format_exception(error)),
        },
        "metrics": {},
        "findings": {},
        "started": watch.started,
        "seconds": watch.seconds,
        "provenance": provenance(None if gone else session.compute.torch_device()),
    }
    session.reporter.warn(f"{title} failed: {result['error']}")
    if session.store.done(cell["id"]) is None:
        session.store.put(cell | result)
