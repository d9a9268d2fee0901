"""The evaluation of a model on the CPU, by default of the tiny network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dmlbench.compute.device import Compute
from dmlbench.compute.embedding import EmbeddingModel
from dmlbench.datasets.base import RetrievalData
from dmlbench.evaluation.evaluator import Evaluation, evaluation
from dmlbench.testing import tiny_network
from tests.reporters import Silent


@contextmanager
def measured(
    data: RetrievalData, model: EmbeddingModel | None = None, **compute: Any
) -> Iterator[Evaluation]:
    network = model or tiny_network()
    settings = {"batch_size": 16} | compute
    with evaluation(network, data, Compute("cpu", **settings), Silent()) as found:
        yield found
