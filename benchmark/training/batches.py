"""SPC-2 batches (two images per class): the choice of images, and their way to the device."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from dmlbench.compute.device import processors
from dmlbench.training.job import anchors

Index = npt.NDArray[np.int64]

RESIDENT_BYTES = 2 * 2**30  # arrays up to this size stay in the memory of the device
MOST_WORKERS = 4  # processes that read ahead; they only copy decoded pixels, so a few suffice


def pair_batches(labels: Index, pairs: int, generator: np.random.Generator) -> list[Index]:
    """Draw the batches of an epoch, (2 * pairs,) positions each: anchor, positive, anchor, ...

    Each image whose class has another one is the anchor once, in random order. Its positive is
    drawn uniformly from the rest of its class. The last batch may be smaller.

    Args:
        labels: (N,) class of each image.
        pairs: number of pairs in a batch.
        generator: the source of random numbers.
    """
    order = generator.permutation(anchors(labels))
    by_class = np.argsort(labels, kind="stable")
    classes, start, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
    place = np.empty(len(labels), dtype=np.int64)
    place[by_class] = np.arange(len(labels))
    group = np.searchsorted(classes, labels[order])
    # a shift of 1..size-1 within the class never lands on the anchor itself
    shift = 1 + (generator.random(len(order)) * (sizes[group] - 1)).astype(np.int64)
    position = (place[order] - start[group] + shift) % sizes[group] + start[group]
    interleaved = np.stack([order, by_class[position]], axis=1)
    return [interleaved[first : first + pairs].reshape(-1) for first in range(0, len(order), pairs)]


@dataclass(frozen=True)
class Rows(Dataset[torch.Tensor]):
    """A uint8 image array in memory or on disk (memory-mapped), read one batch at a time."""

    images: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, index: list[int]) -> torch.Tensor:
        return torch.from_numpy(self.images[np.asarray(index)])


class ImageBatches:
    """Brings batches of uint8 images to a device.

    Small arrays are copied to the device once; worker processes read ahead from larger ones.

    Args:
        images: (N, C, H, W) uint8.
        device: the device of the batches.
    """

    def __init__(self, images: npt.NDArray[np.uint8], device: torch.device) -> None:
        self._rows, self._device = Rows(images), device
        self._resident: torch.Tensor | None = None
        if images.nbytes <= RESIDENT_BYTES:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # read-only memory: nothing writes to it
                self._resident = torch.from_numpy(images).to(device)

    def batches(self, positions: Sequence[Index]) -> Iterator[torch.Tensor]:
        """Yield (B, C, H, W) uint8 on the device for each element (B,) of ``positions``."""
        if self._resident is not None:
            for index in positions:
                yield self._resident[torch.from_numpy(index).to(self._device)]
            return
        loader = DataLoader(
            self._rows,
            batch_sampler=[index.tolist() for index in positions],
            # forked workers share the mapped file; elsewhere they would each be sent a copy
            num_workers=min(MOST_WORKERS, processors()) if sys.platform == "linux" else 0,
            multiprocessing_context="fork" if sys.platform == "linux" else None,
            collate_fn=_unchanged,
            generator=torch.Generator(),  # its seed is not drawn from the network's generator
            pin_memory=self._device.type == "cuda",
        )
        for batch in loader:
            yield batch.to(self._device, non_blocking=True)


def _unchanged(batch: Any) -> Any:
    return batch
