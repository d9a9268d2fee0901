"""A data set made of images and labels in memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmlbench.common.errors import UserError
from dmlbench.common.lazy import np
from dmlbench.common.numbers import check_whole
from dmlbench.common.text import first_line
from dmlbench.core.naming import DATASET_NAME
from dmlbench.core.protocol import Recipe, Threat, TrainingThreat
from dmlbench.datasets.apart import (
    check_alone,
    check_apart,
    numbered,
    warn_of_shared,
    warn_of_trained,
)
from dmlbench.datasets.base import DATASETS, Answers, Dataset, DatasetCard, RetrievalData, Split
from dmlbench.metrics.names import benign

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
    data: RetrievalData = field(repr=False)

    @property
    def card(self) -> DatasetCard:  # type: ignore[override]  # one class stands for many data sets
        """The card that ``from_arrays`` made."""
        return self.own_card

    @property
    def benign(self) -> tuple[str, ...]:
        """Those of instance retrieval, if the answers of each query are listed."""
        return benign(self.protocol.recalls, listed=self.data.answers is not None)

    def load(self, data_root: Path | None, cache: Cache | None = None) -> RetrievalData:
        """The arrays; nothing is read."""
        return self.data


def from_arrays(
    images: Images,
    labels: Labels | None,
    *,
    train: tuple[Images, Labels] | None = None,
    gallery: tuple[Images, Labels | None] | None = None,
    sources: tuple[Sequence[Any], Sequence[Any]] | None = None,
    positives: Sequence[Sequence[int]] | None = None,
    junk: Sequence[Sequence[int]] | None = None,
    name: str = "arrays",
    eps: float | str = 8 / 255,
    alpha: float | str = 3 / 255,
    steps: int = 32,
    model: str = "c2f2",
    recipe: Recipe | None = None,
    training_threat: TrainingThreat | None = None,
) -> Dataset:
    """A data set from images in memory.

    Each of ``images`` is in turn the query; all the others are the gallery that it searches, unless
    there is a ``gallery``.

    Args:
        images: (N, C, H, W), or (N, H, W) for grey ones: 8-bit integers, or floats in [0, 1] that
            are whole multiples of 1/255, as ``torchvision.transforms.ToTensor`` gives them.
        labels: N classes, numbers or text. Retrieval needs two classes of two images or more.
        gallery: images and labels that the queries search; the label None is that of a distractor,
            which has no class. With a gallery the label None of a query means that it has no
            answer. Nowhere else may a label be None. A missing label of pandas (NaN) is None.
        sources: the source of each of ``images`` and of each gallery image (a camera, an object): a
            query does not see the gallery images of its own.
        positives: of each query the positions of its answers in the gallery, in place of classes:
            the labels of both do not count then, and may be None (also ``None`` for all of them).
        junk: of each query positions that are left out of its ranking, as they are neither right
            nor wrong; with ``positives``.
        train: images and labels to train on, for ``run`` and ``train``; ``evaluate`` needs none.
        name: of the data set in tables. Give each data set, and each ``eps``, its own name: tables
            tell data sets apart by their name.
        eps: radius of the ball in which attacks may change an image, in [0, 1] pixel space: a
            number or a fraction such as ``8 / 255`` or ``"8/255"``.
        alpha: size of an attack's step, as ``eps``.
        steps: number of an attack's steps.
        model: spec of the network that ``run`` and ``train`` take.
        recipe: how that is trained; 8 epochs of 128 pairs by default.
        training_threat: the adversary of adversarial training; ``eps`` in 8 steps by default.

    Raises:
        UserError: images or labels of another form.
    """
    eps, alpha = _length("eps", eps), _length("alpha", alpha)
    if alpha == 0:
        raise UserError("alpha must be above 0: it is the length of a step")
    check_whole("steps", steps, 1)
    _check_name(name)
    for what, given, kind in (
        ("recipe", recipe, Recipe),
        ("training_threat", training_threat, TrainingThreat),
    ):
        if given is not None and not isinstance(given, kind):
            raise UserError(f"{what} must be a {kind.__module__}.{kind.__name__}, got {given!r}")
    _check_pair("train", train, "images, labels")
    _check_pair("gallery", gallery, "images, labels")
    _check_pair("sources", sources, "of images, of the gallery")
    classes: dict[Any, int] = {}
    apart = gallery is not None
    listed = apart and positives is not None
    test = _split(images, labels, "images", classes, bare=apart, unlabelled=listed)
    searched = (
        None
        if gallery is None
        else _split(*gallery, "gallery images", classes, bare=True, unlabelled=listed)
    )
    if searched is None and (len(classes) < 2 or np.bincount(test.labels).max() < 2):
        raise UserError("retrieval needs two or more classes, and one of two or more images")
    if train is None:
        shape = (0, *test.images.shape[1:])
        learnt = Split(np.zeros(shape, np.uint8), np.zeros(0, np.int64))
    else:
        learnt = _split(*train, "train images", classes)
    for what, split in (("train", learnt), ("gallery", searched)):
        if split is not None and split.images.shape[1:] != test.images.shape[1:]:
            raise UserError(
                f"{what} images are {split.images.shape[1:]} and the others "
                f"{test.images.shape[1:]}: they must have one shape"
            )
    data = RetrievalData(learnt, test)
    if searched is not None:
        data = _apart(name, data, searched, sources, positives, junk)
    elif any(one is not None for one in (sources, positives, junk)):
        raise UserError("sources, positives and junk go with a gallery")
    else:
        check_alone(name, test)
    warn_of_shared(name, len(set(learnt.labels.tolist()) & set(test.labels.tolist())))
    warn_of_trained(name, data)
    card = DatasetCard(
        name,
        "images in memory",
        model=model,
        recipe=recipe or Recipe(),
        threat=Threat(eps=eps, alpha=alpha, steps=steps),
        training_threat=training_threat or TrainingThreat(eps=eps, eta=8),
    )
    return ArrayDataset(own_card=card, data=data)


def _check_name(name: Any) -> None:
    """UserError unless a data set in memory may have this name."""
    if not isinstance(name, str) or not re.fullmatch(DATASET_NAME, name):
        raise UserError(f"name {name!r} must be letters, digits, '_', '-' and '.'")
    if name in DATASETS.names():
        raise UserError(
            f"name {name!r} is that of a registered data set, on whose board these numbers would "
            "stand: give another"
        )


def _check_pair(what: str, pair: Any, form: str) -> None:
    if pair is not None and not (isinstance(pair, tuple | list) and len(pair) == 2):
        raise UserError(f"{what} must be a pair ({form})")


def _length(name: str, value: Any) -> float:
    """A length in [0, 1] pixel space; UserError if it is none."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(Fraction(value) if isinstance(value, str) else value)
    except (TypeError, ValueError, ZeroDivisionError):
        raise UserError(f"{name} must be a number or a fraction '8/255', got {value!r}") from None
    if not 0 <= number <= 1:
        hint = f": {value}/255?" if 1 < number <= LEVELS else ""
        raise UserError(f"{name} must be within 0 and 1, as pixels are, got {value!r}{hint}")
    return number


def _apart(
    name: str,
    data: RetrievalData,
    gallery: Split,
    sources: tuple[Sequence[Any], Sequence[Any]] | None,
    positives: Sequence[Sequence[int]] | None,
    junk: Sequence[Sequence[int]] | None,
) -> RetrievalData:
    """The data with a gallery; arguments and errors are those of ``from_arrays``."""
    test, answers = data.test, None
    if sources is not None:
        ids = [[_source(one) for one in _array(part, "sources").tolist()] for part in sources]
        for what, split, part in zip(("query", "gallery"), (test, gallery), ids, strict=True):
            if len(part) != len(split):
                raise UserError(f"{len(split)} {what} images need as many sources, got {len(part)}")
        own, theirs = numbered(*ids)
        test, gallery = replace(test, sources=own), replace(gallery, sources=theirs)
    if positives is None and junk is not None:
        raise UserError("junk goes with positives")
    if positives is not None:
        right = _positions("positives", positives, len(test), len(gallery))
        none: Sequence[Sequence[int]] = [[]] * len(test)
        left_out = _positions("junk", none if junk is None else junk, len(test), len(gallery))
        for query, (one, other) in enumerate(zip(right, left_out, strict=True)):
            if both := sorted(set(one) & set(other)):
                raise UserError(
                    f"query {query}: position {both[0]} is in its positives and in its junk: leave "
                    "it out of one"
                )
        answers = Answers(right, left_out)
        test = replace(test, labels=np.full(len(test), -1))
        gallery = replace(gallery, labels=np.full(len(gallery), -1))
    found = replace(data, test=test, gallery=gallery, answers=answers)
    check_apart(name, found)
    return found


def _positions(
    what: str, given: Sequence[Sequence[int]], queries: int, items: int
) -> tuple[tuple[int, ...], ...]:
    """Of each query the positions in the gallery that are listed; UserError if they are none."""
    try:
        found = tuple(tuple(sorted({_whole(item) for item in one})) for one in given)
    except (TypeError, ValueError, OverflowError):  # the last: infinity
        raise UserError(
            f"{what} must be a list of gallery positions for each query, such as [[3, 5], [0]]"
        ) from None
    if len(found) != queries:
        raise UserError(f"{queries} queries need as many lists of {what}, got {len(found)}")
    for query, one in enumerate(found):
        if not all(0 <= item < items for item in one):
            raise UserError(f"{what} of query {query}: a position is not in the gallery")
    return found


def _whole(item: Any) -> int:
    """A number as a whole one; ValueError if it is none."""
    if (whole := int(item)) != item and not isinstance(item, str):
        raise ValueError
    return whole


def _source(value: Any) -> str:
    """A source as text, the same for 3, 3.0 and "3"; UserError if it is missing."""
    import pandas as pd

    if isinstance(value, list):
        raise UserError("sources must be one number or text for each image")
    if pd.isna(value):
        raise UserError(
            "sources must have one for each image: where it is unknown, give the image a source "
            "that no other one has"
        )
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _split(
    images: Images,
    labels: Labels | None,
    what: str,
    classes: dict[Any, int],
    *,
    bare: bool = False,
    unlabelled: bool = False,
) -> Split:
    """The arrays as a split.

    Args:
        images, labels: the arrays.
        what: name of the images, for errors.
        classes: gives each label its number and learns new ones.
        bare: some labels may be missing, as of images without a class.
        unlabelled: there may be no labels at all.
    """
    import pandas as pd

    pixels = _pixels(images, what)
    if labels is None:
        labels = [None] * len(pixels) if unlabelled else []
    named = _array(labels, f"labels of {what}").reshape(-1).tolist()
    missing = pd.isna(np.asarray(_on_cpu(labels), object)).reshape(-1)  # None, NaN and NA
    named = [None if gone else one for one, gone in zip(named, missing, strict=True)]
    if len(named) != len(pixels):
        raise UserError(f"{len(pixels)} {what} need as many labels, got {len(named)}")
    if None in named and not bare:
        raise UserError(
            f"{named.count(None)} of {len(named)} {what} have no label (None or NaN), which only "
            "those of a gallery and its queries may lack: leave these images out"
        )
    numbers = [-1 if one is None else classes.setdefault(one, len(classes)) for one in named]
    return Split(pixels, np.array(numbers, np.int64))


def _pixels(images: Images, what: str) -> npt.NDArray[np.uint8]:
    """(N, C, H, W) uint8."""
    try:
        array = np.asarray(_on_cpu(images))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{what} must be an array or a dense tensor of integers or floats, or a list of images "
            f"of one size ({first_line(error)}); of a torch Dataset: "
            "from_arrays(torch.stack([x for x, _ in it]), [y for _, y in it])"
        ) from None
    array = array[:, None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[2] != array.shape[3] or not array.size:
        hint = ": move the channels to the front" if array.shape[-1:] in ((1,), (3,)) else ""
        raise UserError(
            f"{what} must be (N, C, H, W) with H = W, or (N, H, W); got {array.shape}{hint}"
        )
    if array.dtype == np.uint8:  # a copy: the caller may write into its own, and no name changes
        return np.array(array, order="C") if array.flags.writeable else np.ascontiguousarray(array)
    levels = np.asarray(array, np.float64) * LEVELS
    rounded, slack = levels.round(), 0.1 if array.dtype == np.float16 else 1e-3
    if not np.isfinite(levels).all() or np.abs(levels - rounded).max() > slack:
        raise UserError(
            f"{what} must be 8-bit integers, or floats that are whole multiples of 1/255: round "
            "them with (images * 255).round() / 255 if that is what you want"
        )
    if rounded.min() < 0 or rounded.max() > LEVELS:
        raise UserError(f"{what} of type {array.dtype} must be in [0, 1]; pass 0..255 as uint8")
    return np.ascontiguousarray(rounded.astype(np.uint8))


def _array(values: Any, what: str) -> npt.NDArray[Any]:
    """Labels or sources as an array; UserError unless there is one value for each image."""
    try:
        return np.atleast_1d(np.asarray(_on_cpu(values)))
    except (TypeError, ValueError):
        raise UserError(f"{what} must be one number or text for each image") from None


def _on_cpu(values: Any) -> Any:
    """A tensor, or each of a list, without gradient and on the CPU; anything else as it is."""
    if isinstance(values, list | tuple):
        return [_on_cpu(one) for one in values]
    return values.detach().cpu() if hasattr(values, "detach") else values
