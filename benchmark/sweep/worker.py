"""The worker of a run: trains models, measures cells and stores the results, in one process."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Self

import torch
from msgspec import structs

from dmlbench.common.errors import CellError, UserError
from dmlbench.common.hashing import file_sha256, identity
from dmlbench.common.text import first_line
from dmlbench.compute.provenance import provenance, source_sha256
from dmlbench.compute.randomness import as_trained
from dmlbench.core.naming import without_paths
from dmlbench.evaluation.evaluator import Evaluation, evaluation
from dmlbench.evaluation.measurement import Measurement
from dmlbench.metrics.bootstrap import bootstrap_mean
from dmlbench.metrics.ers import score_per_query
from dmlbench.models.base import shown_model
from dmlbench.storage import checkpoint
from dmlbench.storage.cell import Cell
from dmlbench.storage.interrupted import Interrupted
from dmlbench.sweep.session import Session, Stopwatch, store_failure, store_success
from dmlbench.sweep.tasks import Combine, Measure, Task, Train, Weights
from dmlbench.training.job import Training
from dmlbench.training.trainer import train


class Worker:
    """Does tasks one after another. The last measured model stays in memory, with its gallery.

    Raises:
        UserError: this machine does not have the device.
    """

    def __init__(self, session: Session) -> None:
        session.compute.check()
        self.session = session
        self._source = source_sha256()  # now: the files may change while they are in use
        self._open = ExitStack()
        self._measured: tuple[str, Evaluation] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def do(self, task: Task) -> Cell | None:
        """Do a task and store its result. If it fails, its cell is stored as failed.

        Returns:
            The failed cell; None if the task has succeeded.

        Raises:
            UserError: other tasks would fail too (a full disk, a damaged checkpoint).
        """
        watch = Stopwatch()
        try:
            if isinstance(task, Train):
                self._train(task)
            else:
                if isinstance(task, Measure):
                    task = self._with_what_is_stored(task)
                found = self._combine(task) if isinstance(task, Combine) else self._measure(task)
                store_success(self.session, task.cell, found, watch)
        except (UserError, KeyboardInterrupt):
            raise
        except BaseException as error:  # whatever a plugin raises fails its cell only
            training = task.training if isinstance(task, Train) else None
            self.session.store.forget_interrupted(task.cell.id)
            cause = with_advice(error, training)
            return store_failure(self.session, task.cell, task.title, cause, watch)
        return None

    def close(self) -> None:
        """Remove the model from memory."""
        self._measured = None
        self._open.close()

    def evaluation(self, weights: Weights) -> Evaluation:
        """Load the weights and embed the gallery, unless the last task has done so.

        Raises:
            UserError: the weights do not fit the network, or the file was replaced.
        """
        digest = weights.facts["checkpoint"]
        if self._measured is None or self._measured[0] != digest:
            self.close()
            session = self.session
            with as_trained(weights.trained_with):
                model = weights.model.build(session.data.channels, session.data.size)
            if weights.path is not None:
                checkpoint.load_weights(weights.path, model, shown_model(weights.model))
                if file_sha256(weights.path) != digest:
                    raise UserError(f"{weights.path} was replaced during the run: run again")
            measured = self._open.enter_context(
                evaluation(model, session.data, session.compute, session.reporter)
            )
            self._measured = digest, measured
        return self._measured[1]

    def _train(self, task: Train) -> None:
        self.close()  # training needs the memory
        session, training = self.session, task.training
        folder = session.store.model_folder(training.id)
        if checkpoint.verified_manifest(folder, training.facts) is None:
            train(training, session.data, folder, session.compute, session.reporter)
        session.store.remove(task.cell.id)  # the cell of an earlier failure

    def _with_what_is_stored(self, task: Measure) -> Measure:
        """The task with the columns and the description of its cell, if that is stored already.

        It is measured again because this run wants more of it, and nothing is lost.
        """
        known = self.session.store.get(task.cell.id)
        if known is None:
            return task
        columns = task.cell.columns | known.columns
        about, place = known.about, task.cell.about.dataset
        if without_paths(about.dataset) == without_paths(place):  # the images may have been moved
            about = structs.replace(about, dataset=place)
        cell = structs.replace(task.cell, columns=columns, about=about)
        more = columns.keys() > task.cell.columns.keys()
        return replace(task, cell=cell, recalls=task.recalls or more)

    def _measure(self, task: Measure) -> Measurement:
        measured = self.evaluation(task.weights)
        if task.attack is None:
            return measured.benign(task.cell.columns)
        keep, seed = self.session.keep, task.weights.seed
        images = self.session.store.images(task.cell.id)
        save = images if self.session.save_images or images.is_file() else None
        found = measured.attack(
            *(task.attack, seed, task.title, task.queries, keep),
            recalls=task.recalls,
            save=save,
            interrupted=None if save else self._interrupted(task),
        )
        if found.kept:
            self.session.kept[task.cell.id] = found.kept
        return found

    def _interrupted(self, task: Measure) -> Interrupted | None:
        """The file in which what an attack has found is kept; None if it cannot be gone on from.

        That is so for a randomised network, for which some attacks draw once what is for all
        queries.
        """
        compute, cell, store = self.session.compute, task.cell, self.session.store
        if self._source is None or compute.eot > 1:
            return None
        made = provenance(compute.torch_device())
        facts = {
            "cell": cell.id,
            "columns": sorted(cell.columns),
            "source": self._source,
            "libraries": made.libraries,
            "device": made.device,
            "threads": made.threads,
        }
        return Interrupted(store.interrupted(cell.id), identity(facts), store.check_in_place)

    def _combine(self, task: Combine) -> Measurement:
        outcomes = self.session.store.outcomes
        found = [(column, outcomes(cell_id)[column].to_numpy()) for cell_id, column in task.sources]
        (name,) = task.cell.columns
        values = score_per_query(name, found)
        return Measurement({name: bootstrap_mean(values)}, {}, {name: values})


def with_advice(error: BaseException, training: Training | None) -> BaseException:
    """The error, or one with a remedy if memory was short, in a training or elsewhere (None)."""
    out = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if not out and "can't allocate memory" not in str(error):  # what PyTorch says on a CPU
        return error
    if training is not None:
        pairs = training.recipe.pairs
        remedy = f"a smaller batch than {pairs} pairs (--recipe pairs={max(2, pairs // 2)})"
    else:
        remedy = "a smaller --batch-size"
    said = first_line(error)
    short = CellError(f"out of memory: use {remedy}, or another --device ({said})")
    return short.with_traceback(error.__traceback__)
