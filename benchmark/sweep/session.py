"""What the cells of a run have in common, and how a row of theirs is stored. Imports no torch."""

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
    from dmlbench.evaluation.attacked_queries import AttackedQuery
    from dmlbench.evaluation.evaluator import Measurement


@dataclass(frozen=True)
class Session:
    """What the cells of a run have in common.

    Attributes:
        dataset: what is measured on.
        data_root, cache: where data sets and decoded images lie; None: the default places.
        store: the results folder.
        compute: device, batch size, threads and precision.
        reporter: shows the progress.
        keep: of each attack, so many attacked queries stay in ``kept``, for pictures.
        kept: identity of a cell -> its first attacked queries, of the cells that this process
            has measured.
    """

    dataset: Dataset
    data_root: Path | None
    cache: Path | None
    store: Store
    compute: Compute
    reporter: Reporter
    keep: int = 0
    kept: dict[str, list[AttackedQuery]] = field(default_factory=dict)

    @cached_property
    def data(self) -> RetrievalData:
        """The images, read when they are first needed.

        Raises:
            UserError: they are not to be had, or are not what the data set declares.
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
        """Content digest of the data, without reading it where it is known."""
        return self.dataset.known_digest or self.data.digest


@dataclass(frozen=True)
class Stopwatch:
    """When a row was begun, and how long it has taken; the clock on the wall may jump."""

    started: float = field(default_factory=time.time)
    _monotonic: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._monotonic

    @classmethod
    def ended(cls, seconds: float) -> Stopwatch:
        """One that was made so many seconds ago."""
        return cls(time.time() - seconds, time.monotonic() - seconds)


def succeed(session: Session, cell: Cell, found: Measurement, watch: Stopwatch) -> None:
    """Store what a cell has found."""
    result = {
        "status": "ok",
        "metrics": {name: asdict(estimate) for name, estimate in found.metrics.items()},
        "findings": found.findings,
        "started": watch.started,
        "seconds": watch.seconds,
        "provenance": provenance(session.compute.torch_device()),
    }
    session.store.put(cell | result, found.outcomes)


def fail(session: Session, cell: Cell, title: str, error: BaseException, watch: Stopwatch) -> None:
    """Say that a cell has failed, and store it unless a number of it is there already.

    An error without a traceback is of a process that is gone.
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
