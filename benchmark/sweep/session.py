"""Settings that all tasks of a run share, and functions that store results. Imports no torch."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dmlbench.common.errors import CellError, DamagedError, UserError
from dmlbench.common.files import check_writable
from dmlbench.common.numbers import check_whole
from dmlbench.common.progress import Reporter
from dmlbench.common.text import one_line, printable
from dmlbench.compute.device import Compute, is_main_process, local_device, under_torchrun
from dmlbench.compute.provenance import provenance
from dmlbench.core.protocol import Recipe
from dmlbench.core.reference import foreign
from dmlbench.datasets.base import Dataset, RetrievalData
from dmlbench.datasets.files.cache import Cache
from dmlbench.storage.cell import Cell, ExceptionInfo, PlannedCell
from dmlbench.storage.checkpoint import Manifest, verified_manifest
from dmlbench.storage.store import Store
from dmlbench.training.job import Training, anchors, small_batch

if TYPE_CHECKING:
    from dmlbench.evaluation.attacked_queries import AttackedQuery
    from dmlbench.evaluation.measurement import Measurement

LONGEST_ERROR = 2000  # characters of an error in a cell


@dataclass(frozen=True)
class Session:
    """Settings that all tasks of a run share.

    Attributes:
        dataset: the data set.
        data_root: folder of data sets; None: ``~/.cache/dmlbench``.
        cache: folder of decoded images; None: the default one.
        store: the results folder.
        compute: device, batch size, threads, precision, draws.
        reporter: receives progress and messages.
        keep: number of attacked queries of each attack that stay in ``kept``, for pictures.
        save_images: write the adversarial images of each attack to ``store.images(cell)``.
        downloads: False: data that are not on this machine are an error.
        read_before: the main process of this run has read the images on this machine, checked what
            is decoded of them, and said what is odd about them.
        planned: the digest of the images that the main process has read; None if this one is it.
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
    save_images: bool = False
    downloads: bool = True
    read_before: bool = False
    planned: str | None = None
    kept: dict[str, list[AttackedQuery]] = field(default_factory=dict)

    @cached_property
    def data(self) -> RetrievalData:
        """The images; they are read when this is first used.

        Raises:
            UserError: they are not available, have changed since the run began, or their digest is
                not the declared one.
        """
        if not (self.downloads or self.is_here):
            raise UserError(
                f"data set {self.dataset.card.name} is not on this machine, and a dry run "
                f"downloads nothing: {self.dataset.protocol.source}"
            )
        cache = Cache(self.cache, self.reporter, checked=self.read_before)
        said = warnings.catch_warnings(action="ignore") if self.read_before else nullcontext()
        with foreign(self.dataset), said:
            data = self.dataset.load(self.data_root, cache)
        data = replace(data, recalls=self.dataset.protocol.recalls)
        known = self.dataset.known_digest
        if known not in (None, data.digest):
            raise UserError(
                f"data set {self.dataset.card.name} has digest {data.digest[:16]}, but declares "
                f"{str(known)[:16]}: its known_digest is wrong"
            )
        if self.planned not in (None, data.digest):
            raise UserError(
                f"the images of {self.dataset.card.name} have changed since the run began: run "
                "again"
            )
        return data

    @property
    def is_here(self) -> bool:
        """False if the first use of the data set would have to download it."""
        fetches = type(self.dataset).download is not Dataset.download
        return not fetches or self.dataset.locate(self.data_root) is not None

    @property
    def digest(self) -> str:
        """The digest of the content of the data; the images are read only if it is not declared."""
        return self.dataset.known_digest or self.data.digest

    def fitted(self, recipe: Recipe) -> Recipe:
        """``recipe``, with a smaller batch if the data set's is larger than its train split.

        An epoch has four batches then. Another batch size than the usual one is kept.
        """
        usual = self.dataset.protocol.recipe.pairs
        if recipe.pairs != usual or self.dataset.known_digest is not None:
            return recipe
        found = len(anchors(self.data.train.labels))
        if not 2 <= found < usual:
            return recipe
        pairs = small_batch(found)
        self.reporter.say(
            f"the train split has {found} images with a partner in their class, fewer than a batch "
            f"of {usual} pairs: a batch has {pairs} (another number: --recipe pairs=N)"
        )
        return replace(recipe, pairs=pairs)

    def done(self, cell: PlannedCell) -> bool:
        """True if the store has all that this run wants of a cell (``complete``)."""
        found = self.store.done(cell.id)
        return found is not None and self.complete(cell, found)

    def complete(self, cell: PlannedCell, found: Cell) -> bool:
        """True if a stored cell that succeeded has every column of the planned one.

        Where adversarial images are saved, those of an attack must be there, too.
        """
        images = self.save_images and cell.facts.get("kind") == "attack"
        return cell.columns.keys() <= found.columns.keys() and (
            not images or self.store.images(found.id).is_file()
        )

    def check_queries(self, queries: int | None) -> None:
        """UserError unless that many queries are a part of the test split (None: all of it)."""
        if queries is None:
            return
        check_whole("queries", queries, 1)
        if queries >= (images := len(self.data.test)):
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
    eot: int = 1,
    writing: bool = True,
    torchrun: bool = False,
    progress: bool = True,
    keep: int = 0,
    save_images: bool = False,
) -> Iterator[Session]:
    """The session of a run, and its progress on standard error, while the context lasts.

    Args:
        dataset: what is measured on.
        results: the results folder.
        data_root, cache: where data sets and decoded images lie; None: ``~/.cache/dmlbench``.
        device, batch_size, threads, precision, eot: those of ``Compute``.
        writing: check now that ``results`` can be written to; False: a dry run, which downloads no
            data either.
        torchrun: whether several processes that ``torchrun`` started may share the work.
        progress: whether progress is shown.
        keep: number of attacked queries of each attack to keep, for pictures.
        save_images: whether the adversarial images of each attack are stored.

    Raises:
        UserError: the folder or the device cannot be used.
    """
    from rich.console import Console

    from dmlbench.common.console_progress import reporter_for
    from dmlbench.common.progress import QuietReporter

    if under_torchrun() and not torchrun:
        raise UserError("torchrun is for 'dmlbench train'; what it trained, 'dmlbench run' finds")
    compute = Compute(local_device(device), batch_size, threads, precision, eot)
    if writing:
        check_writable(results, "--results")
    shown = progress and is_main_process()
    with reporter_for(Console(stderr=True)) if shown else QuietReporter() as reporter:
        store = Store(results, results.stat().st_ino if writing else None)
        places = dataset, data_root, cache, store
        yield Session(*places, compute, reporter, keep, save_images, downloads=writing)


def sound_manifest(session: Session, training: Training, repair: bool = True) -> Manifest | None:
    """The manifest of a trained model; None if there is none, or if the model is damaged.

    A damaged model is named, and moved to ``quarantine/`` if ``repair``.

    Raises:
        UserError: it cannot be read, or comes from another training.
    """
    try:
        return verified_manifest(session.store.model_folder(training.id), training.facts)
    except DamagedError as error:
        fate = f"moved to {session.store.set_aside(training.id)}" if repair else "left out"
        session.reporter.warn(f"{error.reason}: its model is {fate} and trained again")
        return None


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


def store_success(
    session: Session, cell: PlannedCell, found: Measurement, watch: Stopwatch
) -> None:
    """Store what a cell has found, unless another run has stored more columns of it meanwhile.

    Raises:
        CellError: it is out of bounds.
    """
    known = session.store.done(cell.id)
    if known is None or not known.columns.keys() > cell.columns.keys():
        made = provenance(session.compute.torch_device())
        seconds = found.seconds_before + watch.seconds
        done = cell.measured(found.metrics, found.findings, watch.started, seconds, made)
        session.store.put(done, found.outcomes)
    session.store.forget_interrupted(cell.id)


def store_failure(
    session: Session, cell: PlannedCell, title: str, error: BaseException, watch: Stopwatch
) -> Cell:
    """Say that a cell has failed, and store it unless a number of it is there already.

    Returns:
        The failed cell, also where the number of an earlier run is kept in its place.

    Args:
        session: settings of the run.
        cell: the cell.
        title: name of its task, for the message.
        error: the cause. It has no traceback if the process that did the task is dead.
        watch: the start of the task.
    """
    kind = "" if isinstance(error, UserError | CellError) else f"{type(error).__name__}: "
    gone = error.__traceback__ is None
    trace = None if gone else printable("".join(traceback.format_exception(error)))
    made = provenance(None if gone else session.compute.torch_device())
    raised = ExceptionInfo(type(error).__name__, trace)
    said = one_line(f"{kind}{error}".strip())
    said = said if len(said) <= LONGEST_ERROR else f"{said[:LONGEST_ERROR]}..."
    failed = cell.failed(said, raised, watch.started, watch.seconds, made)
    kept = session.store.done(cell.id) is not None
    session.reporter.warn(f"{title} failed: {failed.error}{'; the stored number stays' * kept}")
    if not kept:
        session.store.put(failed)
    return failed
