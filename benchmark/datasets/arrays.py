"""A data set made of images and labels in memory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmlbench.common.errors import UserError
from dmlbench.common.lazy import np
from dmlbench.core.protocol import Recipe, Threat, TrainingThreat
from dmlbench.datasets.base import Dataset, DatasetCard, RetrievalData, Split

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from dmlbench.datasets.files.cache import Cache

    Images = npt.NDArray[Any] | torch.Tensor
    Labels = npt.NDArray[Any] | torch.Tensor | list[Any]

LEVELS = 255  # images are stored in 8 bits


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayDataset(Dataset):
    """Images and labels in memory; made by ``from_arrays``."""

    own_card: DatasetCard
    data: RetrievalData

    @property
    def card(self) -> DatasetCard:  # type: ignore[override]  # one class stands for many data sets
        """The card that ``from_arrays`` made."""
        return self.own_card

    def load(self, data_root: Path | None, cache: Cache | None = None) -> RetrievalData:
        """The arrays; nothing is read."""
        return self.data


def from_arrays(
    images: Images,
    labels: Labels,
    *,
    train: tuple[Images, Labels] | None = None,
    name: str = "arrays",
    eps: float = 8 / 255,
    alpha: float = 3 / 255,
    steps: int = 32,
    model: str = "c2f2",
    recipe: Recipe | None = None,
    training_threat: TrainingThreat | None = None,
) -> Dataset:
    """A data set from images in memory.

    Each of ``images`` is in turn the query; all the others are the gallery that it searches.

    Args:
        images: (N, C, H, W), or (N, H, W) for grey ones: 8-bit integers, or floats in [0, 1] that
            are whole multiples of 1/255, as ``torchvision.transforms.ToTensor`` gives them.
        labels: N classes, numbers or text. Retrieval needs two classes of two images or more.
        train: images and labels to train on, for ``run`` and ``train``; ``evaluate`` needs none.
        name: of the data set in tables.
        eps: radius of the ball in which attacks may change an image, in [0, 1] pixel space.
        alpha: size of an attack's step.
        steps: number of an attack's steps.
        model: spec of the network that ``run`` and ``train`` take.
        recipe: how that is trained; 8 epochs of 128 pairs by default.
        training_threat: the adversary of adversarial training; ``eps`` in 8 steps by default.

    Raises:
        UserError: images or labels of another form.
    """
    if not re.fullmatch(r"[\w.-]*\w", name):
        raise UserError(f"name {name!r} must be letters, digits, '_', '-' and '.'")
    classes: dict[Any, int] = {}
    test = _split(images, labels, "images", classes)
    if len(classes) < 2 or np.bincount(test.labels).max() < 2:
        raise UserError("retrieval needs two or more classes, and one of two or more images")
    if train is None:
        shape = (0, *test.images.shape[1:])
        learnt = Split(np.zeros(shape, np.uint8), np.zeros(0, np.int64))
    else:
        learnt = _split(*train, "train images", classes)
    if learnt.images.shape[1:] != test.images.shape[1:]:
        raise UserError(
            f"train images are {learnt.images.shape[1:]} and the others {test.images.shape[1:]}: "
            "they must have one shape"
        )
    card = DatasetCard(
        name,
        "images in memory",
        model=model,
        recipe=recipe or Recipe(),
        threat=Threat(eps=eps, alpha=alpha, steps=steps),
        training_threat=training_threat or TrainingThreat(eps=eps, eta=8),
    )
    return ArrayDataset(own_card=card, data=RetrievalData(learnt, test))


def _split(images: Images, labels: Labels, what: str, classes: dict[Any, int]) -> Split:
    """The arrays as a split; ``classes`` gives each label its number and learns new ones."""
    pixels = _pixels(images, what)
    named = np.asarray(_on_cpu(labels)).reshape(-1).tolist()
    if len(named) != len(pixels):
        raise UserError(f"{len(pixels)} {what} need as many labels, got {len(named)}")
    numbers = [classes.setdefault(label, len(classes)) for label in named]
    return Split(pixels, np.array(numbers, np.int64))


def _pixels(images: Images, what: str) -> npt.NDArray[np.uint8]:
    """(N, C, H, W) uint8."""
    array = np.asarray(_on_cpu(images))
    array = array[:, None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[2] != array.shape[3] or not array.size:
        hint = ": move the channels to the front" if array.shape[-1:] in ((1,), (3,)) else ""
        raise UserError(
            f"{what} must be (N, C, H, W) with H = W, or (N, H, W); got {array.shape}{hint}"
        )
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    levels = np.asarray(array, np.float64) * LEVELS
    rounded = levels.round()
    if not np.isfinite(levels).all() or np.abs(levels - rounded).max() > 1e-3:
        raise UserError(
            f"{what} must be 8-bit integers, or floats that are whole multiples of 1/255: round "
            "them with (images * 255).round() / 255 if that is what you want"
        )
    if rounded.min() < 0 or rounded.max() > LEVELS:
        raise UserError(f"{what} of type {array.dtype} must be in [0, 1]; pass 0..255 as uint8")
    return np.ascontiguousarray(rounded.astype(np.uint8))


def _on_cpu(values: Any) -> Any:
    """A tensor without gradient and on the CPU; anything else as it is."""
    return values.detach().cpu() if hasattr(values, "detach") else values
