"""Checks of a data set: its card, then what it loads, if its files are there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dmlbench.common.text import counted
from dmlbench.compute.randomness import global_seeds
from dmlbench.core import spec
from dmlbench.core.protocol import SUITES, Recipe, Threat, TrainingThreat
from dmlbench.core.reference import is_own
from dmlbench.datasets.apart import finding_themselves, pixel_hashes
from dmlbench.datasets.base import Dataset, DatasetCard, RetrievalData, Split
from dmlbench.datasets.files.cache import Cache
from dmlbench.models.base import parse_model
from dmlbench.testing import cards
from dmlbench.testing.findings import FlawError, LeftOutError, require
from dmlbench.testing.randomness import no_global_randomness

SAID = "both splits"  # in the card's note, of a set whose splits share images


@dataclass
class Subject:
    """A data set, and where its files are looked for."""

    component: Dataset
    data_root: Path | None = None
    cache: Path | None = None

    def load(self) -> RetrievalData:
        """Read it; nothing is downloaded."""
        cls, places = type(self.component), (Dataset.locate, Dataset.download)
        needs_files = (cls.locate, cls.download) != places
        if needs_files and self.component.locate(self.data_root) is None:
            raise LeftOutError(f"its files are not here: {self.component.protocol.source}")
        found: object = self.component.load(self.data_root, Cache(self.cache))
        if not isinstance(found, RetrievalData):
            raise FlawError(
                f"load() returns {type(found).__name__}: return RetrievalData(train, test), with a "
                "gallery where it is apart"
            )
        return found

    @cached_property
    def data(self) -> RetrievalData:
        """The result of ``load``, read once for all checks."""
        return self.load()

    @property
    def splits(self) -> dict[str, Split]:
        """Train and test, and the gallery where it is apart."""
        return self.data.splits


def protocol(s: Subject) -> None:
    """The card says how a model is trained on it and attacked."""
    card = s.component.card
    require(
        isinstance(card, DatasetCard),
        "its card is no DatasetCard: a run needs the model, the recipe and the threats from it",
    )
    assert isinstance(card, DatasetCard)
    threat, training = card.threat, card.training_threat
    require(
        isinstance(card.recipe, Recipe)
        and isinstance(threat, Threat)
        and isinstance(training, TrainingThreat),
        "the card's recipe, threat and training_threat must be a Recipe, a Threat and a "
        "TrainingThreat (dmlbench.core.protocol)",
    )
    for p in spec.parameters(Recipe):
        p.check(getattr(card.recipe, p.name))
    require(
        0 <= threat.eps <= 1 and 0 < threat.alpha <= 1 and threat.steps >= 1,
        f"the threat has eps {threat.eps}, alpha {threat.alpha} and {threat.steps} steps: eps and "
        "alpha are lengths in a pixel range of 0 to 1, e.g. 8 / 255, and there is a step at least",
    )
    require(
        threat.suite in SUITES,
        f"the threat's suite is {threat.suite!r}: write one of {', '.join(SUITES)}",
    )
    require(
        0 < training.eps <= 1 and training.eta >= 1,
        f"the training threat has eps {training.eps} and eta {training.eta}: eps is a length in a "
        "pixel range of 0 to 1, e.g. 8 / 255, and eta at least 1",
    )
    require(card.source, "the card's source is empty: say in words where to get the files")
    parse_model(card.model)


def load(s: Subject) -> None:
    """It can be read, as images and labels of each split."""
    assert s.data


def form(s: Subject) -> None:
    """Images and labels have the types and shapes that training and evaluation expect."""
    for part, split in s.splits.items():
        shape = split.images.shape
        require(
            split.images.dtype == np.uint8 and len(shape) == 4 and shape[2] == shape[3],
            f"the {part} images are {split.images.dtype} of shape {shape}: they must be uint8, "
            "(N, channels, size, size), square; resize or cut them as they are loaded",
        )
        require(
            split.labels.dtype == np.int64 and split.labels.shape == shape[:1],
            f"the {part} labels are {split.labels.dtype} of shape {split.labels.shape}: they must "
            f"be int64, one an image, ({shape[0]},)",
        )
        # -1 is the label of a distractor, and of every image where answers are listed
        none = part == "gallery" or (part == "test" and s.data.answers is not None)
        total = sum(map(len, s.splits.values()))
        for what, ids in (("label", split.labels), ("source", split.sources)):
            largest = -1 if ids is None else max(ids, default=-1)
            require(
                largest < total,
                f"a {part} {what} is {largest}, with {total} images in all: number the {what}s "
                "from 0 without gaps, as tables of their length are made",
            )
        require(
            not len(split) or split.labels.min() >= (-1 if none else 0),
            f"a {part} label is {'below -1' if none else 'negative'}: number the classes from 0",
        )
    train, *others = ((part, split.images.shape[1:]) for part, split in s.splits.items())
    for part, shape in others:
        require(
            shape == train[1],
            f"train images are {train[1]} and {part} images {shape}: make them alike",
        )
    crop = s.data.crop
    require(
        crop is None or 0 < crop <= train[1][1],
        f"crop is {crop}, and the images are {train[1][1]} pixels high: it must fit into them",
    )


def classes(s: Subject) -> None:
    """Each split has two classes of two images, so that there is something to retrieve.

    Where the gallery is apart nothing need train, and the check ``answers`` looks at the queries.
    """
    apart = s.data.gallery is not None
    parts = {} if apart else {"test": s.data.test}
    if len(s.data.train) or not apart:
        parts["train"] = s.data.train
    for part, split in parts.items():
        sizes = np.bincount(split.labels)
        require(
            int((sizes >= 2).sum()) >= 2,
            f"the {part} split has {int((sizes >= 2).sum())} classes of two or more images: "
            "retrieval needs two at least, each query's class another member",
        )


def answers(s: Subject) -> None:
    """Each query has answers and does not find itself, if queries and gallery are apart."""
    queries, gallery, listed = s.data.test, s.data.gallery, s.data.answers
    if gallery is None:
        return
    for what, split in (("query", queries), ("gallery", gallery)):
        require(len(split), f"there is no {what} image, so there is nothing to search")
    require(
        (queries.sources is None) == (gallery.sources is None),
        "one of queries and gallery has sources: give both some, so that a query's are known",
    )
    for what, lists in (("positives", listed.positives), ("junk", listed.junk)) if listed else ():
        require(
            len(lists) == len(queries),
            f"{len(lists)} lists of {what} for {len(queries)} queries: give each one, perhaps ()",
        )
        require(
            all(0 <= item < len(gallery) for one in lists for item in one),
            f"a position in {what} is not below {len(gallery)}, the number of gallery images",
        )
    relevance = s.data.relevance()
    require(
        bool(relevance.answers.any()),
        "no query has an answer that it sees: there is no R@K. The classes of both must have the "
        "same numbers, or answers must list them; sources must not hide them all",
    )
    itself = finding_themselves(s.data, relevance)
    require(
        not itself,
        f"{itself} queries find themselves, as their image is in the gallery too: leave it out of "
        "one, or hide it from them (Split.sources, Answers.junk)",
    )


def repeatable(s: Subject) -> None:
    """Two loads give the same images, whatever was drawn before."""
    digests = []
    for seed in (1, 2):
        with global_seeds(seed), no_global_randomness("load()", type(s.component).__mro__):
            digests.append(s.load().digest)
    require(
        digests[0] == digests[1],
        "two loads give different images or labels: every number is stored under the digest of "
        "its data, so none would be found again. Sort what is listed from a folder or a set, and "
        "draw from a generator with a fixed seed",
    )


def declared(s: Subject) -> None:
    """The digest and the figures that it declares are true."""
    known, found = s.component.known_digest, s.data.digest
    require(
        known in (None, found),
        f"known_digest is {known!r}, and the digest is {found!r}: plans would store numbers under "
        "the wrong data; write the one that was found, or leave known_digest out",
    )
    card = s.component.protocol
    measured = dataclasses.replace(s.data, recalls=card.recalls).benign
    require(
        s.component.benign == measured,
        f"its property benign says that the metrics of clean images are "
        f"{', '.join(s.component.benign)}, and they are {', '.join(measured)}, as "
        f"{'answers are listed' if s.data.answers else 'classes answer'}: return "
        f"dmlbench.metrics.names.benign(recalls, listed={s.data.answers is not None})",
    )
    for part, split in s.splits.items():
        said = card.figures.get(part, split.figures)
        require(
            said == split.figures,
            f"the card says that the {part} split has {said}, and it has {split.figures}",
        )


def disjoint(s: Subject) -> None:
    """No image is in both splits, or the card's note says so."""
    shared = len(set(pixel_hashes(s.data.train)) & set(pixel_hashes(s.data.test)))
    fixed = is_own(type(s.component))  # the card of ``folder`` is not the user's
    say_so = "" if fixed else f", or say in the card's note that images are in {SAID}"
    require(
        not shared or SAID in s.component.protocol.note,
        f"{counted(shared, 'image is', 'images are')} in both splits: a model would be "
        f"measured on what it was trained on. Leave them out of one{say_so}",
    )


def network(s: Subject) -> None:
    """The card's network embeds the images."""
    model = parse_model(s.component.protocol.model)
    with global_seeds(0):
        model.build(s.data.channels, s.data.size)


CHECKS: dict[str, Callable[[Subject], None]] = {
    "card": lambda s: cards.card(s.component),
    "parameters": lambda s: cards.parameters(s.component),
    "protocol": protocol,
    "load": load,
    "form": form,
    "classes": classes,
    "answers": answers,
    "repeatable": repeatable,
    "declared": declared,
    "disjoint": disjoint,
    "network": network,
}
NEEDS = {"load": "protocol", "form": "load", "repeatable": "load"}
NEEDS |= dict.fromkeys(("classes", "answers", "declared", "disjoint", "network"), "form")
