"""A model and the embeddings of the test split that it is measured on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from dmlbench.attacks.base import Gallery
from dmlbench.attacks.engine.optimizer import expectation
from dmlbench.common.hashing import derived_seed
from dmlbench.common.progress import Reporter
from dmlbench.compute.embedding import EmbeddingModel, embed
from dmlbench.compute.model_checks import check_model
from dmlbench.compute.randomness import global_seeds
from dmlbench.core.flags import Flag
from dmlbench.datasets.base import RetrievalData
from dmlbench.evaluation.cuda_graphs import replayed_or_launched

DRAWN_ROWS = 32  # images of a batch of a randomised network, which decide what it draws
LOOKED_AT = 64  # images, spread over all, that a network is checked on


@dataclass
class EmbeddedTest:
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
        """The flags that the checks of every run raise on the model.

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

    def _batches(self) -> Iterator[torch.Tensor]:
        return iter(torch.split(self.index, self.rows))


def spread(index: torch.Tensor, count: int) -> torch.Tensor:
    """At most ``count`` of the positions, evenly spread over all."""
    places = torch.linspace(0, len(index) - 1, min(count, len(index)), dtype=torch.float64)
    return index[places.round().long().to(index.device)]
