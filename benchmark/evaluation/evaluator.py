"""Evaluation of a model: its clean metrics, and its metrics under each attack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dmlbench.attacks import moved_query
from dmlbench.attacks.base import Attack, Attacked, Column, Gallery
from dmlbench.attacks.engine.optimizer import expectation
from dmlbench.common.errors import CellError
from dmlbench.common.hashing import derived_seed, file_sha256
from dmlbench.common.progress import Bar, Reporter
from dmlbench.compute.device import Compute
from dmlbench.compute.embedding import EmbeddingModel, embed, frozen, on_device
from dmlbench.compute.model_checks import check_model
from dmlbench.compute.randomness import global_seeds
from dmlbench.core.flags import Flag
from dmlbench.datasets.base import RetrievalData
from dmlbench.evaluation.attacked_queries import AttackedQuery, first_of_batch
from dmlbench.evaluation.cuda_graphs import Replayed, replayed_or_launched
from dmlbench.evaluation.self_checks import LOOKED_AT, attack_flags, spread
from dmlbench.metrics.bootstrap import (
    Estimate,
    bootstrap_mean,
    bootstrap_median,
    deciles,
    shares_above,
)
from dmlbench.metrics.clustering import NMI_VERSION, kmeans_nmi
from dmlbench.metrics.collapse import chance_recall, effective_rank, is_collapsed, mean_cosine
from dmlbench.metrics.retrieval import retrieval
from dmlbench.storage import adversarial

CLEAN = " clean"  # suffix of outcomes without an attack
DRAWN_ROWS = 32  # images of a batch of a randomised network, which decide what it draws

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
class Progress:
    """Moves a bar, whose units are queries, with every pass over a batch of them.

    Attributes:
        bar: the bar; None: nothing is shown.
        passes: the most that a query takes.
        left: queries of the current batch that the bar has not been moved by.
    """

    bar: Bar | None
    passes: int
    left: float = 0.0

    def passed(self, rows: int) -> None:
        """One more pass begins, over so many images."""
        amount = min(rows / self.passes, self.left)
        self.left -= amount
        if self.bar is not None:
            self.bar.advance(amount)

    def finish(self, note: str) -> None:
        """The batch is done, perhaps in fewer passes."""
        if self.bar is not None:
            self.bar.advance(self.left, note)
        self.left = 0.0


@dataclass
class Evaluation:
    """A frozen model on the test split of a data set. The gallery is embedded once.

    Attributes:
        model: in eval mode, on its device.
        data: the data set.
        device: of the model.
        rows: images of a batch; halved when memory is short.
        reporter: shows the progress.
        precision: number format of the model.
        draws: passes of a randomised model that every number is the mean of; 1: it is not
            randomised. Batches then have 32 images, whatever ``rows`` was, because a batch decides
            what its images draw: so numbers do not depend on the batch size.
        most_passes: passes that a batch of queries may take; None: as many as it needs.
        index: (N,) positions of all test images.
    """

    model: EmbeddingModel
    data: RetrievalData
    device: torch.device
    rows: int
    reporter: Reporter
    precision: str = "fp32"
    draws: int = 1
    most_passes: int | None = None
    index: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        if self.draws > 1:
            self.rows = DRAWN_ROWS
        self.index = torch.arange(len(self.data.test), device=self.device)

    @cached_property
    def network(self) -> nn.Module:
        """The model, its kernels launched or replayed; all embeddings come from it."""
        if self.draws > 1:
            return self.model
        sample = self.images(self.index[: self.rows])
        return replayed_or_launched(self.model, sample, self.reporter.warn)

    def passes(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of images, from one pass."""
        if self.draws == 1:
            return embed(self.network, images)
        e: torch.Tensor = self.network(images)
        return e

    @cached_property
    def checked(self) -> list[Flag]:
        """What the checks of every run say of the model.

        Raises:
            CellError: its numbers would mean nothing.
        """
        images = self.images(spread(self.index, LOOKED_AT))
        return check_model(self.model, self.network, images, self.precision, self.draws)

    @cached_property
    def gallery(self) -> Gallery:
        """Clean embeddings of the test split, by the same code as attacked ones.

        Those of a randomised model are the means over its draws, brought back to unit length for
        the metrics N and C.

        Raises:
            CellError: the model is one whose numbers would mean nothing.
        """
        _ = self.checked
        e = self._drawn(0)
        for number in range(1, self.draws):
            e += self._drawn(number)
        if self.draws > 1:
            e = e / self.draws if self.model.metric == "E" else nn.functional.normalize(e, dim=1)
        labels = torch.from_numpy(self.data.test.labels).to(self.device)
        return Gallery(e, labels, self.model.metric, images=self.images)

    def _drawn(self, number: int) -> torch.Tensor:
        """(N, D) embeddings of all test images in one draw, which its number decides."""
        parts: list[torch.Tensor] = []
        slow = self.most_passes is not None
        title = "embed the gallery"
        with self.reporter.task(title, len(self.index)) if slow else nullcontext() as bar:
            for batch in self._batches():
                seed = derived_seed(0, "draw", number, int(batch[0]))
                with torch.no_grad(), global_seeds(seed, self.device):
                    parts.append(self.passes(self.images(batch)))
                if bar is not None:
                    bar.advance(len(batch))
        return torch.cat(parts)

    def expected(self, images: torch.Tensor) -> torch.Tensor:
        """(B, D) the mean embedding of images over the draws of a randomised model."""
        with torch.no_grad(), global_seeds(derived_seed(0, "expected"), self.device):
            return expectation(self.draws, lambda: self.passes(images))

    def images(self, index: torch.Tensor) -> torch.Tensor:
        """Test images at ``index``, float32 in [0, 1]."""
        test = self.data.test
        return self.data.evaluation_pixels(test.batch(index.cpu().numpy(), self.device))

    def benign(self) -> Measurement:
        """Measure R@1, R@2, mAP, mAP@R, mAP@10, NMI and the signs of a collapse."""
        e, labels = self.gallery.embeddings, self.gallery.labels
        # queries of a randomised model are drawn anew, and not from the gallery's means
        numbers = range(self.draws, 2 * self.draws) if self.draws > 1 else ()
        queries = (self._drawn(number) for number in numbers) if numbers else (e,)
        every = [retrieval(q, self.index, e, labels, self.gallery.metric) for q in queries]
        found = every[0]
        if not found.valid.any():
            raise CellError("no class of the test split has two images: there is no R@K")
        scores = {name: [one.scores[name] for one in every] for name in found.scores}
        outcomes = {
            name: (torch.stack(drawn).mean(0) if self.draws > 1 else drawn[0]).cpu().numpy()
            for name, drawn in scores.items()
        }
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
            **as_finding(self.checked),
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
        self,
        attack: Attack,
        seed: int,
        title: str,
        queries: int | None = None,
        keep: int = 0,
        *,
        recalls: bool = False,
        save: Path | None = None,
    ) -> Measurement:
        """Perturb each chosen test image in turn as the query (or candidate).

        Args:
            attack: resolved.
            seed: decides the targets.
            title: of the progress bar.
            queries: test images to attack (``chosen``); the outcomes of the others are NaN.
            keep: so many queries, the first ones, stay with their images in the result.
            recalls: also measure R@K and the distance moved (``attacks.moved_query``), if it is the
                query that is perturbed.
            save: .npz file for the adversarial images (``storage.adversarial``); None: none.
        """
        index = self.chosen(queries)
        extra = moved_query.columns_of(type(attack)) if recalls else ()
        columns = (*attack.columns, *extra)
        kept: list[AttackedQuery] = []
        parts: dict[str, list[torch.Tensor]] = {}
        observed: dict[str, list[torch.Tensor]] = {}
        last: dict[str, list[torch.Tensor]] = {}
        passes = forward = full = full_forward = flat = 0
        radius = 0.0
        gallery = self.gallery
        with (
            self.reporter.task(title, len(index)) as bar,
            _image_file(save, attack, index) as write,
        ):
            progress = Progress(bar, self._passes(attack))
            for batch, images, attacked in self._attacked(attack, gallery, index, seed, progress):
                want = keep - len(kept)
                kept += first_of_batch(self.expected, gallery, batch, images, attacked, want)
                write(attacked.perturbed.images)
                clean = attacked.clean | moved_query.outcomes(
                    extra, gallery.embeddings[batch], batch, gallery
                )
                found = attacked.outcomes | self.moved(extra, attacked.perturbed.images, batch)
                for name, values in found.items():
                    parts.setdefault(name, []).append(values)
                    parts.setdefault(name + CLEAN, []).append(clean[name])
                for name, values in attacked.observed.items():
                    observed.setdefault(name, []).append(values)
                for name, values in attacked.last.items():
                    last.setdefault(name, []).append(values)
                done = attacked.perturbed
                passes += done.passes
                full += done.full_passes
                forward += done.forward_passes
                full_forward += done.full_forward_passes
                flat += int(done.flat_start.sum())
                radius = max(radius, float((done.images - images).abs().max()))
                running = [
                    f"{c.name} {torch.cat(parts[c.name]).nanmean():.3g}" for c in attack.columns
                ]
                progress.finish("  ".join(running))
        outcomes = {name: self._by_image(index, torch.cat(v)) for name, v in parts.items()}
        metrics = {c.name: bootstrap_mean(outcomes[c.name]) for c in columns}
        metrics |= {
            c.median: bootstrap_median(outcomes[c.name]) for c in attack.columns if c.median
        }
        findings: dict[str, Any] = {
            **_means(observed),
            "clean": {c.name: float(np.nanmean(outcomes[c.name + CLEAN])) for c in columns},
            "deciles": {c.name: deciles(outcomes[c.name]) for c in columns},
            "curves": {c.name: shares_above(outcomes[c.name]) for c in attack.columns if c.curve},
            "radius": radius,
            "flat_start": flat / len(index),
            "passes": passes / len(index),
            "passes_saved": 1 - (passes + forward) / (full + full_forward),
            "batch_size": self._most_rows(attack, gallery),
            "cuda_graphs": isinstance(self.network, Replayed),
        }
        if full_forward:
            findings["forward_passes"] = forward / len(index)
        if last:
            findings["last_iterate"] = _means(last)
        if save is not None:
            findings["adversarial_sha256"] = file_sha256(save)
        flags = attack_flags(self, attack, index, seed, outcomes, findings)
        return Measurement(metrics, findings | as_finding(flags), outcomes, kept)

    def moved(
        self, wanted: tuple[Column, ...], images: torch.Tensor, index: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Retrieval with the queries at ``index`` (B,) shown as ``images``, adversarial ones.

        Args:
            wanted: columns of ``attacks.moved_query``; nothing is computed if there are none.
        """
        if not wanted:
            return {}
        return moved_query.outcomes(wanted, self.expected(images), index, self.gallery)

    def attacked_queries(
        self, attack: Attack, seed: int, count: int, queries: int | None = None
    ) -> list[AttackedQuery]:
        """Attack only the first ``count`` of the queries that ``attack`` would perturb."""
        index, gallery = self.chosen(queries)[:count], self.gallery
        unseen = Progress(None, self._passes(attack))
        return [
            one
            for batch, images, attacked in self._attacked(attack, gallery, index, seed, unseen)
            for one in first_of_batch(self.expected, gallery, batch, images, attacked, count)
        ]

    def _by_image(self, index: torch.Tensor, values: torch.Tensor) -> npt.NDArray[np.float64]:
        """Spread values of the test images at ``index`` over all N; the others get NaN."""
        found = np.full(len(self.index), np.nan)
        found[index.cpu().numpy()] = values.double().cpu().numpy()
        return found

    def _most_rows(self, attack: Attack, gallery: Gallery) -> int:
        """The number of queries in a batch."""
        rows = min(self.rows, attack.most_rows(gallery))
        if self.most_passes is None:
            return rows
        return min(rows, max(1, self.most_passes // self._passes(attack)))

    def _passes(self, attack: Attack) -> int:
        """The most passes, of either kind, that a query takes; at least 1."""
        return max(1, attack.most_passes * self.draws + attack.most_forward_passes)

    def _attacked(
        self,
        attack: Attack,
        gallery: Gallery,
        index: torch.Tensor,
        seed: int,
        progress: Progress,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, Attacked]]:
        """Yield each batch: positions, clean images, and the result of the attack.

        When memory is short, the batch size is halved and the batch tried again.
        """
        done = 0
        while done < len(index):
            batch = index[done : done + self._most_rows(attack, gallery)]
            images = self.images(batch)
            progress.left = len(batch)
            try:
                attacked = attack.run(
                    self.network,
                    images,
                    batch,
                    gallery,
                    seed=seed,
                    draws=self.draws,
                    on_pass=progress.passed,
                )
            except torch.OutOfMemoryError:
                if self.rows == 1 or self.draws > 1:
                    what = f"{self.rows} images do" if self.draws > 1 else "a single image does"
                    raise CellError(
                        f"{what} not fit into the device's memory: use another --device, or a "
                        "smaller network"
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


def as_finding(flags: list[Flag]) -> dict[str, Any]:
    """The flags as a part of a cell's findings; nothing if there are none."""
    return {"flags": msgspec.to_builtins(flags)} if flags else {}


def _means(parts: dict[str, list[torch.Tensor]]) -> dict[str, float]:
    """Name -> the mean over all queries; NaN does not count."""
    return {name: float(torch.cat(values).double().nanmean()) for name, values in parts.items()}


@contextmanager
def evaluation(
    model: EmbeddingModel, data: RetrievalData, compute: Compute, reporter: Reporter
) -> Iterator[Evaluation]:
    """An ``Evaluation`` of the model: frozen, on the device and at the precision of ``compute``."""
    model.use_bfloat16 = compute.precision == "bf16"
    with compute.applied() as device, frozen(on_device(model, device)):
        yield Evaluation(
            model,
            data,
            device,
            compute.rows(data.size),
            reporter,
            compute.precision,
            compute.eot,
            compute.passes(data.size),
        )


@contextmanager
def _image_file(
    path: Path | None, attack: Attack, index: torch.Tensor
) -> Iterator[Callable[[torch.Tensor], None]]:
    """Yield a function that writes the next adversarial images to ``path``; None: to nowhere."""
    if path is None:
        yield lambda images: None
        return
    with adversarial.writer(path, index.cpu().numpy(), attack.perturbs) as add:

        def write(images: torch.Tensor) -> None:
            if attack.bits == 8:
                images = (255 * images).round().to(torch.uint8)
            add(images.cpu().numpy())

        yield write
