"""Measure a model: its benign metrics and what each attack does to it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from dmlbench.attacks.base import Attack, Gallery
from dmlbench.compute import Compute, pixels
from dmlbench.datasets.base import RetrievalData
from dmlbench.embedding import EmbeddingModel, embed, frozen
from dmlbench.errors import CellError
from dmlbench.metrics.bootstrap import Estimate, bootstrap_mean
from dmlbench.metrics.clustering import kmeans_nmi
from dmlbench.metrics.collapse import chance_recall, effective_rank, is_collapsed, mean_cosine
from dmlbench.metrics.retrieval import retrieval
from dmlbench.progress import Reporter

MEASURE_VERSION = 1  # raised when a definition below changes


@dataclass(frozen=True)
class Measurement:
    """What a cell found.

    Attributes:
        metrics: name -> estimate over queries.
        facts: further findings, JSON-able, e.g. the collapse indicators.
        outcomes: name -> (Q,) value of each query (NaN: the query does not count).
        seconds: wall time.
    """

    metrics: dict[str, Estimate]
    facts: dict[str, float | int | bool]
    outcomes: dict[str, npt.NDArray[np.float64]]
    seconds: float


@dataclass
class Evaluation:
    """A frozen model on the test split of a data set; the gallery is embedded once."""

    model: EmbeddingModel
    data: RetrievalData
    device: torch.device
    rows: int
    reporter: Reporter
    _index: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._index = torch.arange(len(self.data.test), device=self.device)

    @cached_property
    def gallery(self) -> Gallery:
        """Clean embeddings of the test split, from the code path that attacks use."""
        with torch.no_grad():
            parts = [embed(self.model, self._images(batch)) for batch in self._batches()]
        labels = torch.from_numpy(self.data.test.labels).to(self.device)
        return Gallery(torch.cat(parts), labels, self.model.metric)

    def benign(self) -> Measurement:
        """R@1, R@2, mAP, mAP@R, mAP@10 and NMI, with the collapse indicators."""
        begun = time.monotonic()
        e, labels = self.gallery.embeddings, self.gallery.labels
        found = retrieval(e, self._index, e, labels, self.gallery.metric)
        if not found.valid.any():
            raise CellError("no class of the test split has two images: there is no R@K")
        outcomes = {name: value.cpu().numpy() for name, value in found.scores.items()}
        metrics = {name: bootstrap_mean(value) for name, value in outcomes.items()}
        nmi = kmeans_nmi(e.float().cpu().numpy(), labels.cpu().numpy())
        metrics["NMI"] = Estimate(nmi, None, None, len(labels))
        chance, cosine = chance_recall(labels), mean_cosine(e)
        facts: dict[str, float | int | bool] = {
            "queries_left_out": int((~found.valid).sum()),
            "chance R@1": chance,
            "mean_cosine": cosine,
            "effective_rank": effective_rank(e),
            "collapsed": is_collapsed(metrics["R@1"].value, chance, cosine),
        }
        return Measurement(metrics, facts, outcomes, time.monotonic() - begun)

    def attack(self, attack: Attack, seed: int, title: str) -> Measurement:
        """Every test image in turn as the query (or candidate) that is perturbed."""
        begun = time.monotonic()
        gallery = self.gallery
        parts: dict[str, list[torch.Tensor]] = {column.name: [] for column in attack.columns}
        passes = full_passes = 0
        with self.reporter.task(title, len(self._index)) as task:
            for batch in self._batches():
                attacked = attack.run(self.model, self._images(batch), batch, gallery, seed=seed)
                for name, values in attacked.outcomes.items():
                    parts[name].append(values)
                passes += attacked.perturbed.passes
                full_passes += attacked.perturbed.full_passes
                running = "  ".join(f"{k} {torch.cat(v).mean():.1f}" for k, v in parts.items())
                task.advance(len(batch), running)
        outcomes = {name: torch.cat(v).double().cpu().numpy() for name, v in parts.items()}
        metrics = {name: bootstrap_mean(value) for name, value in outcomes.items()}
        facts: dict[str, float | int | bool] = {"passes_saved": 1 - passes / full_passes}
        return Measurement(metrics, facts, outcomes, time.monotonic() - begun)

    def _batches(self) -> Iterator[torch.Tensor]:
        return iter(torch.split(self._index, self.rows))

    def _images(self, index: torch.Tensor) -> torch.Tensor:
        return pixels(self.data.test.images[index.cpu().numpy()], self.device)


@contextmanager
def evaluation(
    model: EmbeddingModel, data: RetrievalData, compute: Compute, reporter: Reporter
) -> Iterator[Evaluation]:
    """The model frozen, on its device, at the precision that ``compute`` sets."""
    with compute.applied() as device, frozen(model.to(device)):
        yield Evaluation(model, data, device, compute.rows(), reporter)
