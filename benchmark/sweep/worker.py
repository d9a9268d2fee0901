"""What one process does of a run: train a model, measure a cell, store what came of it."""

from __future__ import annotations

import shutil
from contextlib import ExitStack

import numpy as np
import torch

from dmlbench.analysis.records import ERS
from dmlbench.common.errors import CellError, UserError
from dmlbench.common.hashing import file_sha256
from dmlbench.evaluation.evaluator import Evaluation, Measurement, evaluation
from dmlbench.metrics.bootstrap import bootstrap_mean
from dmlbench.metrics.ers import shares
from dmlbench.storage import checkpoint
from dmlbench.sweep.session import Session, Stopwatch, fail, succeed
from dmlbench.sweep.tasks import Combine, Measure, Task, Train, Weights
from dmlbench.training.trainer import train


class Worker:
    """Does tasks one after another; the model measured last stays in memory with its gallery.

    Raises:
        UserError: the device is not there.
    """

    def __init__(self, session: Session) -> None:
        session.compute.check()
        self.session = session
        self._open = ExitStack()
        self._measured: tuple[str, Evaluation] | None = None

    def do(self, task: Task) -> None:
        """Train or measure and store the row; a task that fails is a failed row.

        Raises:
            UserError: what no other task would survive either: a full disk, a corrupt checkpoint.
        """
        watch = Stopwatch()
        try:
            if isinstance(task, Train):
                self._train(task)
            else:
                found = self._combine(task) if isinstance(task, Combine) else self._measure(task)
                succeed(self.session, task.cell, found, watch)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # whatever a plugin raises fails its cell only
            fail(self.session, task.cell, task.title, explained(error, task), watch)

    def close(self) -> None:
        """Let go of the model in memory."""
        self._measured = None
        self._open.close()

    def evaluation(self, weights: Weights) -> Evaluation:
        """The weights on their device, with the gallery of the measurements before.

        Raises:
            UserError: they do not fit the network, or have been replaced.
        """
        digest = weights.facts["checkpoint"]
        if self._measured is None or self._measured[0] != digest:
            self.close()
            session = self.session
            model = weights.model.build(session.data.channels, session.data.size)
            checkpoint.load_weights(weights.path, model)
            if file_sha256(weights.path) != digest:
                raise UserError(f"{weights.path} was replaced during the run: run again")
            measured = self._open.enter_context(
                evaluation(model, session.data, session.compute, session.reporter)
            )
            self._measured = digest, measured
        return self._measured[1]

    def _train(self, task: Train) -> None:
        self.close()  # training needs its memory
        session, training = self.session, task.training
        folder = session.store.model_folder(training.id)
        if task.afresh:
            shutil.rmtree(folder, ignore_errors=True)
        if checkpoint.read_manifest(folder, training.facts) is None:
            train(training, session.data, folder, session.compute, session.reporter)
        session.store.remove(task.cell["id"])  # the row of an earlier failure

    def _measure(self, task: Measure) -> Measurement:
        measured = self.evaluation(task.weights)
        if task.attack is None:
            return measured.benign()
        keep = self.session.keep
        found = measured.attack(task.attack, task.seed, task.title, task.queries, keep)
        if keep:
            self.session.kept[task.cell["id"]] = found.kept
        return found

    def _combine(self, task: Combine) -> Measurement:
        outcomes = self.session.store.outcomes
        found = [(column, outcomes(cell_id)[column].to_numpy()) for cell_id, column in task.sources]
        (name,) = task.cell["columns"]
        values = shares(dict(found)) if name == ERS else np.min([x for _, x in found], axis=0)
        return Measurement({name: bootstrap_mean(values)}, {}, {name: values})


def explained(error: BaseException, task: Task) -> BaseException:
    """An error with its remedy where it is the memory that was short."""
    out = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if not out and "can't allocate memory" not in str(error):  # what PyTorch says on a CPU
        return error
    if isinstance(task, Train):
        pairs = task.training.recipe.pairs
        remedy = f"a smaller batch than {pairs} pairs (--recipe pairs={max(2, pairs // 2)})"
    else:
        remedy = "a smaller --batch-size"
    first = str(error).strip().partition("\n")[0]
    explained = CellError(f"out of memory: use {remedy}, or another --device ({first})")
    return explained.with_traceback(error.__traceback__)
