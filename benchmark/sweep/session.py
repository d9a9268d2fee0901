"""What the cells of a run have in common, and how a row of theirs is stored. Imports no torch."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dmlbench.common.errors import CellError, UserError
from dmlbench.common.files import check_writable
from dmlbench.common.progress import Reporter
from dmlbench.compute.device import Compute, launched, leads, local_device
from dmlbench.compute.provenance import provenance
from dmlbench.datasets.base import Dataset, RetrievalData
from dmlbench.datasets.files.cache import Cache
from dmlbench.storage.cell import ExceptionInfo, PlannedCell
from dmlbench.storage.store import Store

if TYPE_CHECKING:
    from dmlbench.evaluation.evaluator import Measurement


@dataclass(frozen=True)
class Session:
    """What the cells of a run have in common."""

    dataset: Dataset
    data_root: Path | None
    cache: Path | None
    store: Store
    compute: Compute
    reporter: Reporter

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

    def check_queries(self, queries: int | None) -> None:
        """UserError unless that many queries are a part of the test split (None: all of it)."""
        if queries is not None and queries >= (images := len(self.data.test)):
            raise UserError(
                f"--queries {queries}: the test split has {images} images; leave it out to "
                "attack each"
            )


@contextmanager
def open_session(
    dataset: Dataset,
    results: Path,
    *,
    data_root: Path | None = None,
    cache: Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    precision: str = "fp32",
    writing: bool = True,
    torchrun: bool = False,
    progress: bool = True,
) -> Iterator[Session]:
    """The session of a run, and its progress on standard error, while the context lasts.

    Args:
        dataset: what is measured on.
        results: the results folder.
        data_root, cache: where data sets and decoded images lie; None: ``~/.cache/dmlbench``.
        device, batch_size, threads, precision: those of ``Compute``.
        writing: check now that ``results`` can be written to.
        torchrun: whether several processes that ``torchrun`` started may share the work.
        progress: whether progress is shown.

    Raises:
        UserError: the folder or the device cannot be used.
    """
    from rich.console import Console

    from dmlbench.common.console_progress import reporter_for
    from dmlbench.common.progress import QuietReporter

    if launched() and not torchrun:
        raise UserError("torchrun is for 'dmlbench train'; what it trained, 'dmlbench run' finds")
    compute = Compute(local_device(device), batch_size, threads, precision)
    if writing:
        check_writable(results, "--results")
    shown = progress and leads()
    with reporter_for(Console(stderr=True)) if shown else QuietReporter() as reporter:
        yield Session(dataset, data_root, cache, Store(results), compute, reporter)


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


def succeed(session: Session, cell: PlannedCell, found: Measurement, watch: Stopwatch) -> None:
    """Store what a cell has found.

    Raises:
        CellError: it is out of bounds.
    """
    made = provenance(session.compute.torch_device())
    done = cell.measured(found.metrics, found.findings, watch.started, watch.seconds, made)
    session.store.put(done, found.outcomes)


def fail(
    session: Session, cell: PlannedCell, title: str, error: BaseException, watch: Stopwatch
) -> None:
    """Say that a cell has failed, and store it unless a number of it is there already.

    An error without a traceback is of a process that is gone.
    """
    kind = "" if isinstance(error, UserError | CellError) else f"{type(error).__name__}: "
    gone = error.__traceback__ is None
    trace = None if gone else "".join(traceback.format_exception(error))
    made = provenance(None if gone else session.compute.torch_device())
    raised = ExceptionInfo(type(error).__name__, trace)
    failed = cell.failed(f"{kind}{error}", raised, watch.started, watch.seconds, made)
    session.reporter.warn(f"{title} failed: {failed.error}")
    if session.store.done(cell.id) is None:
        session.store.put(failed)
