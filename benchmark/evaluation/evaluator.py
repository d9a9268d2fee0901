"""Evaluation of a model: its clean metrics, and its metrics under each attack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dmlbench.attacks.base import Attack, Attacked, Gallery
from dmlbench.common.errors import CellError
from dmlbench.common.hashing import derived_seed
from dmlbench.common.progress import Reporter
from dmlbench.compute.device import Compute
from dmlbench.compute.embedding import EmbeddingModel, embed, frozen, on_device
from dmlbench.datasets.base import RetrievalData
from dmlbench.evaluation.attacked_queries import AttackedQuery, first_of_batch
from dmlbench.evaluation.cuda_graphs import Replayed, replayed_or_launched
from dmlbench.metrics.bootstrap import Estimate, bootstrap_mean, bootstrap_median, deciles
from dmlbench.metrics.clustering import NMI_VERSION, kmeans_nmi
from dmlbench.metrics.collapse import chance_recall, effective_rank, is_collapsed, mean_cosine
from dmlbench.metrics.retrieval import retrieval

CLEAN = " clean"  # suffix of outcomes without an attack

Outcomes = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Measurement:
    """The result of measuring a model, clean or under one attack.

    Attributes:
        metrics: name -> estimate over queries.
        findings: other results as JSON types: self-checks, signs of a collapse, cost.
        outcomes: name -> (N,) value of each test image (NaN: it does not count as a query).
        kept: of an attack, the first queries with their images, as many as were asked for.
    """

    metrics: dict[str, Estimate]
    findings: dict[str, Any]
    outcomes: Outcomes
    kept: list[AttackedQuery] = field(default_factory=list)


@dataclass
class Evaluation:
    """A frozen model on the test split of a data set. The gallery is embedded once.

    Attributes:
        model: in eval mode, on its device.
        data: the data set.
        device: of the model.
        rows: images of a batch; halved when memory is short.
        reporter: shows the progress.
        index: (N,) positions of all test images.
    """

    model: EmbeddingModel
    data: RetrievalData
    device: torch.device
    rows: int
    reporter: Reporter
    index: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.index = torch.arange(len(self.data.test), device=self.device)

    @cached_property
    def network(self) -> nn.Module:
        """The model, its kernels launched or replayed; all embeddings come from it."""
        sample = self.images(self.index[: self.rows])
        return replayed_or_launched(self.model, sample, self.reporter.warn)

    @cached_property
    def gallery(self) -> Gallery:
        """Clean embeddings of the test split, by the same code as attacked ones.

        Raises:
            CellError: two forward passes of the same images differ.
        """
        parts: list[torch.Tensor] = []
        with torch.no_grad():
            for batch in self._batches():
                parts.append(embed(self.network, self.images(batch)))
            first = self.index[: len(parts[0])]
            if not torch.equal(embed(self.network, self.images(first)), parts[0]):
                raise CellError("the model is not deterministic: two forward passes differ")
        labels = torch.from_numpy(self.data.test.labels).to(self.device)
        return Gallery(torch.cat(parts), labels, self.model.metric)

    def images(self, index: torch.Tensor) -> torch.Tensor:
        """Test images at ``index``, float32 in [0, 1]."""
        test = self.data.test
        return self.data.evaluation_pixels(test.batch(index.cpu().numpy(), self.device))

    def benign(self) -> Measurement:
        """Measure R@1, R@2, mAP, mAP@R, mAP@10, NMI and the signs of a collapse."""
        e, labels = self.gallery.embeddings, self.gallery.labels
        found = retrieval(e, self.index, e, labels, self.gallery.metric)
        if not found.valid.any():
            raise CellError("no class of the test split has two images: there is no R@K")
        outcomes = {name: value.cpu().numpy() for name, value in found.scores.items()}
        metrics = {name: bootstrap_mean(value) for name, value in outcomes.items()}
        nmi = kmeans_nmi(e.float().cpu().numpy(), labels.cpu().numpy())
        metrics["NMI"] = Estimate(nmi.value, nmi.low, nmi.high, len(labels))
        chance = chance_recall(labels)
        findings = {
            "queries_left_out": int((~found.valid).sum()),
            "nmi_version": NMI_VERSION,
            "nmi_starts": nmi.starts,
            "chance R@1": chance,
            "mean_cosine": float(mean_cosine(e.double())),
            "effective_rank": effective_rank(e),
            "collapsed": is_collapsed(metrics["R@1"].value, chance),
            "cuda_graphs": isinstance(self.network, Replayed),
        }
        return Measurement(metrics, findings, outcomes)

    def chosen(self, queries: int | None) -> torch.Tensor:
        """Positions of the test images to perturb: all, or that many drawn at random.

        They are the same for every model, attack and seed; a smaller number is a part of a larger.
        """
        if queries is None:
            return self.index
        drawn = np.random.default_rng(derived_seed(0, "queries")).permutation(len(self.index))
        return torch.from_numpy(np.sort(drawn[:queries])).to(self.device)

    def attack(
        self, attack: Attack, seed: int, title: str, queries: int | None = None, keep: int = 0
    ) -> Measurement:
        """Perturb each chosen test image in turn as the query (or candidate).

        Args:
            attack: resolved.
            seed: decides the targets.
            title: of the progress bar.
            queries: test images to attack (``chosen``); the outcomes of the others are NaN.
            keep: so many queries, the first ones, stay with their images in the result.
        """
        index = self.chosen(queries)
        kept: list[AttackedQuery] = []
        parts: dict[str, list[torch.Tensor]] = {}
        passes = full_passes = flat = 0
        radius = 0.0
        gallery = self.gallery
        with self.reporter.task(title, len(index)) as task:
            for batch, images, attacked in self._attacked(attack, gallery, index, seed):
                want = keep - len(kept)
                kept += first_of_batch(self.network, gallery, batch, images, attacked, want)
                for name, values in attacked.outcomes.items():
                    parts.setdefault(name, []).append(values)
                    parts.setdefault(name + CLEAN, []).append(attacked.clean[name])
                done = attacked.perturbed
                passes += done.passes
                full_passes += done.full_passes
                flat += int(done.flat_start.sum())
                radius = max(radius, float((done.images - images).abs().max()))
                running = [
                    f"{c.name} {torch.cat(parts[c.name]).nanmean():.3g}" for c in attack.columns
                ]
                task.advance(len(batch), "  ".join(running))
        outcomes = {name: self._by_image(index, torch.cat(v)) for name, v in parts.items()}
        metrics = {c.name: bootstrap_mean(outcomes[c.name]) for c in attack.columns}
        metrics |= {
            c.median: bootstrap_median(outcomes[c.name]) for c in attack.columns if c.median
        }
        findings = {
            "clean": {c.name: float(np.nanmean(outcomes[c.name + CLEAN])) for c in attack.columns},
            "deciles": {c.name: deciles(outcomes[c.name]) for c in attack.columns},
            "radius": radius,
            "flat_start": flat / len(index),
            "passes": passes / len(index),
            "passes_saved": 1 - passes / full_passes,
            "batch_size": min(self.rows, attack.most_rows(gallery)),
            "cuda_graphs": isinstance(self.network, Replayed),
        }
        return Measurement(metrics, findings, outcomes, kept)

    def attacked_queries(
        self, attack: Attack, seed: int, count: int, queries: int | None = None
    ) -> list[AttackedQuery]:
        """Attack only the first ``count`` of the queries that ``attack`` would perturb."""
        index, gallery = self.chosen(queries)[:count], self.gallery
        return [
            one
            for batch, images, attacked in self._attacked(attack, gallery, index, seed)
            for one in first_of_batch(self.network, gallery, batch, images, attacked, count)
        ]

    def _by_image(self, index: torch.Tensor, values: torch.Tensor) -> npt.NDArray[np.float64]:
        """Spread values of the test images at ``index`` over all N; the others get NaN."""
        found = np.full(len(self.index), np.nan)
        found[index.cpu().numpy()] = values.double().cpu().numpy()
        return found

    def _attacked(
        self, attack: Attack, gallery: Gallery, index: torch.Tensor, seed: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, Attacked]]:
        """Yield each batch: positions, clean images, and the result of the attack.

        When memory is short, the batch size is halved and the batch tried again.
        """
        done = 0
        while done < len(index):
            batch = index[done : done + min(self.rows, attack.most_rows(gallery))]
            images = self.images(batch)
            try:
                attacked = attack.run(self.network, images, batch, gallery, seed=seed)
            except torch.OutOfMemoryError:
                if self.rows == 1:
                    raise CellError(
                        "a single image does not fit into the device's memory: use another "
                        "--device, or a smaller network"
                    ) from None
                self.rows = max(1, min(self.rows, len(batch)) // 2)
                self.__dict__.pop("network", None)  # recorded CUDA graphs hold memory too
                torch.cuda.empty_cache()
                self.reporter.warn(f"out of memory: the batch size is now {self.rows}")
                continue
            done += len(batch)
            yield batch, images, attacked

    def _batches(self) -> Iterator[torch.Tensor]:
        return iter(torch.split(self.index, self.rows))


@contextmanager
def evaluation(
    model: EmbeddingModel, data: RetrievalData, compute: Compute, reporter: Reporter
) -> Iterator[Evaluation]:
    """An ``Evaluation`` of the model: frozen, on the device and at the precision of ``compute``."""
    model.use_bfloat16 = compute.precision == "bf16"
    with compute.applied() as device, frozen(on_device(model, device)):
        yield Evaluation(model, data, device, compute.rows(data.size), reporter)
