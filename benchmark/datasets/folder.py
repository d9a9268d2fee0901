"""A data set of the user's own image files."""

from __future__ import annotations

import functools
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

from dmlbench.common.errors import UserError
from dmlbench.core.spec import parameter
from dmlbench.datasets.apart import LEVELS, numbered, read_answers, read_sources
from dmlbench.datasets.base import DATASETS, DatasetCard
from dmlbench.datasets.images import RECIPE, THREAT, TRAINING_THREAT, ImageDataset, Listing, table
from dmlbench.metrics.names import BENIGN, INSTANCE

SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"),
    *(".gif", ".jp2", ".avif"),
}


@DATASETS.register
@dataclass(frozen=True, kw_only=True)
class Folder(ImageDataset):
    """Images in class folders, or named by lists of files.

    - If ``train_list`` and ``test_list`` are given: each line is a class and a path below the root.
    - Else, if there are ``train/`` and ``test/``: each holds class folders.
    - Else: class folders, sorted by name; the first ``train_classes`` are the train split, the
      others the test split.

    ``query`` and ``gallery`` are folders of class folders that are measured in place of a test
    split: the images of one search those of the other. Images in ``gallery`` itself have no class
    (distractors). ``root`` holds ``train/`` or class folders then, all of which train, except what
    lies in ``query`` or ``gallery``; without it nothing does. With ``positives`` there are no
    classes: all images count, in folders or not. Hidden files and folders are left out.
    """

    card = DatasetCard(
        "folder",
        "image files of your own: class folders, train/ and test/, two lists, or query and gallery",
        model="resnet18",
        recipe=RECIPE,
        threat=THREAT,
        training_threat=TRAINING_THREAT,
        source="name it with --dataset folder:root=DIR, or with folder:query=DIR,gallery=DIR where "
        "the images of one search those of the other",
    )

    root: str = parameter("", "the folder of the images")
    train_classes: int | None = parameter(
        None, "number of class folders to train on, by name; auto: half of them", at_least=1
    )
    train_list: str = parameter(
        "", "file whose lines are 'class path' for the train split, paths below the root"
    )
    test_list: str = parameter("", "the same for the test split")
    query: str = parameter("", "folder of the queries, where the gallery is apart", late=True)
    gallery: str = parameter("", "folder of the images that the queries search", late=True)
    positives: str = parameter(
        "",
        "file whose lines are 'GRADE QUERY ITEM', GRADE one of positive, easy, hard and junk, the "
        "images as paths below query and gallery: what answers a query, in place of classes",
        late=True,
    )
    level: str = parameter(
        "medium",
        "answers that count: easy, easy and hard (medium), or hard ones; the others are left out",
        choices=tuple(LEVELS),
        late=True,
    )
    sources: str = parameter(
        "",
        "file whose lines are 'SOURCE IMAGE', paths below query or gallery (query/PATH and "
        "gallery/PATH where both have one): a query does not see the gallery images of its source "
        "(an object; in person re-identification write identity and camera as one word)",
        late=True,
    )

    def __post_init__(self) -> None:
        if bool(self.query) != bool(self.gallery):
            raise ValueError("query and gallery go together")
        if self.level != "medium" and not self.positives:
            raise ValueError("level goes with positives: leave it out")
        if not self.query and (self.positives or self.sources):
            raise ValueError("positives and sources go with query and gallery")
        if self.query and (self.train_list or self.train_classes):
            raise ValueError("with query and gallery all images in root train: leave the key out")
        if bool(self.train_list) != bool(self.test_list):
            raise ValueError("train_list and test_list go together")
        if self.train_list and self.train_classes:
            raise ValueError("with lists train_classes is not read: leave it out")

    def locate(self, data_root: Path | None) -> Path | None:
        """The folder that holds all others; ``data_root`` does not matter."""
        named = [Path(path).absolute() for path in (self.root, self.query, self.gallery) if path]
        if not self.query:
            return Path(self.root) if self.root else None
        return Path(os.path.commonpath(named))

    @property
    def benign(self) -> tuple[str, ...]:
        """Without classes those of instance retrieval."""
        return INSTANCE if self.positives else BENIGN

    def found(self, data_root: Path | None) -> Listing:
        """The listing of the folders; UserError if none was named."""
        if not (self.root or self.query):
            raise UserError(f"data set folder: {self.protocol.source}")
        return super().found(data_root)

    def listing(self, root: Path) -> Listing:
        """Files sorted by class and name, or in the order of a list.

        A label is the position of the class among all classes, sorted by name.
        """
        try:
            if not root.is_dir():
                raise UserError(f"data set folder: root {root} is not a folder")
            if self.query:
                return self._apart(root)
            if self.train_list:
                parts = [_listed(Path(path)) for path in (self.train_list, self.test_list)]
            elif (root / "train").is_dir() and (root / "test").is_dir():
                if self.train_classes:
                    raise UserError(
                        f"data set folder: {root} has train/ and test/, so train_classes is not "
                        "read: leave it out"
                    )
                parts = [
                    [entry for name in _classes(root / part) for entry in _files(root, part, name)]
                    for part in ("train", "test")
                ]
            elif (root / "train").is_dir() or (root / "test").is_dir():
                raise UserError(
                    f"data set folder: {root} has one of train/ and test/: rename the folder of "
                    "the other split, or give train_list and test_list"
                )
            else:
                parts = self._by_class(root)
        except OSError as error:
            raise UserError(
                f"data set folder: {error.filename} cannot be read: {error.strerror}"
            ) from None
        names = sorted({name for part in parts for name, _ in part})
        label = {name: place for place, name in enumerate(names)}
        train, test = (tuple((path, label[name]) for name, path in part) for part in parts)
        return Listing(root, train, test)

    def _apart(self, root: Path) -> Listing:
        """The listing of queries, gallery and what trains; paths are below ``root``."""
        train: list[tuple[str, str]] = []
        if self.root:
            own = Path(self.root).absolute()
            inside = own / "train" if (own / "train").is_dir() else own
            below = inside.relative_to(root).as_posix()
            apart = [Path(path).resolve() for path in (self.query, self.gallery)]

            @functools.cache
            def trains(folder: Path) -> bool:
                place = folder.resolve()
                return not any(place.is_relative_to(one) for one in apart)

            train = [
                (name, path)
                for one in _classes(inside)
                for name, path in _files(root, below, one)
                if trains((root / path).parent)
            ]
        found = {}
        for key, path in (("query", self.query), ("gallery", self.gallery)):
            folder = Path(path).absolute()
            if not folder.is_dir():
                raise UserError(f"data set folder: {key} {path} is not a folder")
            below = folder.relative_to(root).as_posix()
            loose = [("", file) for _, file in _files(root, below, "", deep=bool(self.positives))]
            classes = () if self.positives else _classes(folder)
            found[key] = [*(e for name in classes for e in _files(root, below, name)), *loose]
            if not found[key]:
                raise UserError(f"data set folder: {key} {path} has no image file in it")
        names = sorted({name for part in (train, *found.values()) for name, _ in part if name})
        label = {name: place for place, name in enumerate(names)} | {"": -1}
        learnt, test, searched = (
            tuple((path, label[name]) for name, path in part) for part in (train, *found.values())
        )
        query, gallery = (
            [os.path.relpath(root / path, folder) for _, path in found[key]]
            for key, folder in (("query", Path(self.query)), ("gallery", Path(self.gallery)))
        )
        answers = sources = None
        if self.positives:
            answers = read_answers(Path(self.positives), query, gallery, self.level)
        if self.sources:
            own_ids, their_ids = numbered(*read_sources(Path(self.sources), query, gallery))
            sources = own_ids, their_ids
        return Listing(root, learnt, test, searched, answers, sources)

    def _by_class(self, root: Path) -> list[list[tuple[str, str]]]:
        files = {name: _files(root, "", name) for name in _classes(root)}
        classes = [name for name, found in files.items() if found]
        cut = len(classes) // 2 if self.train_classes is None else self.train_classes
        if not 0 < cut < len(classes):
            raise UserError(
                f"data set folder: {root} has {len(classes)} folders with images, which cannot "
                f"be split into {cut} that train and others that test"
            )
        return [
            [entry for name in part for entry in files[name]]
            for part in (classes[:cut], classes[cut:])
        ]


def _classes(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _files(root: Path, part: str, name: str, deep: bool = True) -> list[tuple[str, str]]:
    """(class, path below the root) of each image file of a class, in folders at any depth.

    Hidden folders are left out: they hold what programs keep for themselves, such as thumbnails.

    Args:
        root, part, name: the images are below ``root / part / name``; ``name`` is the class.
        deep: in folders of that one too.
    """
    walk = os.walk(root / part / name, onerror=_raise)
    found = []
    for base, folders, files in walk if deep else itertools.islice(walk, 1):
        folders[:] = [one for one in folders if not one.startswith(".")]  # os.walk enters these
        found += [
            Path(base, file).relative_to(root).as_posix()
            for file in files
            if Path(file).suffix.lower() in SUFFIXES and not file.startswith(".")
        ]
    return [(name, path) for path in sorted(found)]


def _listed(path: Path) -> list[tuple[str, str]]:
    return [(name, file) for name, file in table(path, 2)]


def _raise(error: OSError) -> None:
    raise error
