"""A model and the embeddings of the queries and the gallery that it is measured on."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import nn

from dmlbench.attacks.base import Attack, Gallery
from dmlbench.attacks.engine.optimizer import expectation
from dmlbench.common.hashing import derived_seed
from dmlbench.common.progress import Bar, QuietReporter, Reporter
from dmlbench.compute.embedding import EmbeddingModel, embed
from dmlbench.compute.folding import SAMPLE, folded
from dmlbench.compute.model_checks import check_model, finite
from dmlbench.compute.randomness import global_seeds
from dmlbench.core.flags import Flag
from dmlbench.datasets.base import RetrievalData, Split
from dmlbench.evaluation.cuda_graphs import replayed_or_launched

DRAWN_ROWS = 32  # images of a batch of a randomised network, which decide what it draws
Part = Literal["gallery", "queries", "train"]
LOOKED_AT = 64  # images, spread over all, that a network is checked on


@dataclass
class EmbeddedTest:
    """A frozen model on a data set. Queries and gallery are embedded once.

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
        most_passes: passes that a batch of queries may take, unless the model is randomised; None:
            as many as it needs.
        index: (Q,) numbers of all queries: their positions among the test images.
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
        return replayed_or_launched(self.folded, sample, self.reporter.warn)

    @cached_property
    def folded(self) -> EmbeddingModel:
        """The model, its batch norms folded where they can be."""
        return (
            self.model if self.draws > 1 else folded(self.model, self.images(self.index[:SAMPLE]))
        )

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of images, from one pass without a gradient.

        Raises:
            CellError: one is not finite.
        """
        return finite(embed(self.network, images) if self.draws == 1 else self.network(images))

    @cached_property
    def checked(self) -> list[Flag]:
        """The flags that the checks of every run raise on the model.

        Raises:
            CellError: its numbers would mean nothing.
        """
        images = self.images(spread(self.index, LOOKED_AT))
        with self._bar("check the network", 1):
            return check_model(self.model, self.network, images, self.precision, self.draws)

    @cached_property
    def gallery(self) -> Gallery:
        """Clean embeddings of gallery and queries, by the same code as attacked ones.

        Those of a randomised model are the means over its draws, brought back to unit length for
        the metrics N and C.

        Raises:
            CellError: the model is one whose numbers would mean nothing.
        """
        _ = self.checked
        apart = self.data.gallery is not None
        return Gallery(
            self._mean("gallery"),
            torch.from_numpy(self.data.searched.labels).to(self.device),
            self.model.metric,
            images=self.gallery_images,
            queries=self._mean("queries") if apart else None,  # type: ignore[arg-type]
            relevance=self.data.relevance(self.device),
            query_images=self.images,
            apart=apart,
            train=self._train_split if len(self.data.train) else None,
        )

    def _train_split(self) -> Gallery:
        """Clean embeddings of the train split."""
        labels = torch.from_numpy(self.data.train.labels).to(self.device)
        return Gallery(self._mean("train"), labels, self.model.metric, images=self._train_images)

    def _mean(self, part: Part) -> torch.Tensor:
        """(N, D) clean embeddings, the means over the draws."""
        e = self.drawn(0, part)
        for number in range(1, self.draws):
            e += self.drawn(number, part)
        if self.draws > 1:
            e = e / self.draws if self.model.metric == "E" else nn.functional.normalize(e, dim=1)
        return e

    def drawn(self, number: int, part: Part) -> torch.Tensor:
        """(N, D) embeddings of all images in one draw, which its number decides."""
        data = self.data
        split = {"gallery": data.searched, "queries": data.test, "train": data.train}[part]
        found: torch.Tensor | None = None
        index = torch.arange(len(split), device=self.device)
        with self._bar(f"embed the {part}", len(index)) as bar:
            for batch in torch.split(index, self.rows):
                seed = derived_seed(0, "draw", number, int(batch[0]))
                with torch.no_grad(), global_seeds(seed, self.device):
                    e = self.embed(self._pixels(split, batch))
                if found is None:  # not joined from parts at the end, which takes twice the memory
                    found = e.new_empty(len(index), e.shape[1])
                found[batch] = e
                bar.advance(len(batch))
        assert found is not None
        return found

    def _bar(self, title: str, total: int) -> AbstractContextManager[Bar]:
        """A progress bar for what takes long: passes over large images on a CPU."""
        reporter = QuietReporter() if self.most_passes is None else self.reporter
        return reporter.task(title, total)

    def expected(self, images: torch.Tensor) -> torch.Tensor:
        """(B, D) the mean embedding of images over the draws of a randomised model."""
        with torch.no_grad(), global_seeds(derived_seed(0, "expected"), self.device):
            return expectation(self.draws, lambda: self.embed(images))

    def images(self, index: torch.Tensor) -> torch.Tensor:
        """The queries ``index`` (B,), float32 in [0, 1]."""
        return self._pixels(self.data.test, index)

    def gallery_images(self, index: torch.Tensor) -> torch.Tensor:
        """The gallery images at ``index`` (B,), float32 in [0, 1]."""
        return self._pixels(self.data.searched, index)

    def _train_images(self, index: torch.Tensor) -> torch.Tensor:
        """The train images at ``index`` (B,), as the network sees them in evaluation."""
        return self._pixels(self.data.train, index)

    def perturbed_by(self, attack: Attack, index: torch.Tensor) -> torch.Tensor:
        """The images that an attack perturbs: the queries ``index``, or their candidates."""
        if attack.perturbs == "query":
            return self.images(index)
        return self.gallery_images(self.gallery.candidates[index])

    def _pixels(self, split: Split, index: torch.Tensor) -> torch.Tensor:
        return self.data.evaluation_pixels(split.batch(index.cpu().numpy(), self.device))


def spread(index: torch.Tensor, count: int) -> torch.Tensor:
    """At most ``count`` of the positions, evenly spread over all."""
    places = torch.linspace(0, len(index) - 1, min(count, len(index)), dtype=torch.float64)
    return index[places.round().long().to(index.device)]
