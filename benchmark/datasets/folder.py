"""A data set of the user's own image files."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dmlbench.common.errors import UserError
from dmlbench.common.text import counted
from dmlbench.core.naming import PATHS
from dmlbench.core.spec import expanded, parameter
from dmlbench.datasets.apart import (
    LEVELS,
    numbered,
    read_answers,
    read_sources,
    warn_of_trained,
)
from dmlbench.datasets.base import DATASETS, DatasetCard, RetrievalData
from dmlbench.datasets.files.lines import numbered_table
from dmlbench.datasets.files.tree import Tree, is_image
from dmlbench.datasets.images import (
    RECIPE,
    THREAT,
    TRAINING_THREAT,
    ImageDataset,
    Listing,
)
from dmlbench.metrics.names import benign


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
    classes: all images count, in folders or not.

    Hidden files and folders are left out. So are, with a warning: images that are not read or have
    no ending, images in no class folder, folders without an image, folders of results and boards
    that dmlbench wrote, and links to folders inside a class folder.
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
        for name in PATHS:  # p, p/ and ./p are one data set in tables
            if value := getattr(self, name):
                object.__setattr__(self, name, str(Path(expanded(value))))
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
        return benign(listed=bool(self.positives))

    def found(self, data_root: Path | None) -> Listing:
        """The listing of the folders; UserError if none was named."""
        if not (self.root or self.query):
            raise UserError(f"data set folder: {self.protocol.source}")
        return super().found(data_root)

    def listing(self, root: Path) -> Listing:
        """Files sorted by class and name, or in the order of a list.

        A label is the position of the class among all classes, sorted by name.
        """
        tree = Tree(root)
        try:
            if not root.is_dir():
                raise UserError(f"data set folder: root {root} is not a folder")
            return self._apart(tree) if self.query else self._split(tree)
        except OSError as error:
            raise UserError(
                f"data set folder: {error.filename} cannot be read: {error.strerror}"
            ) from None
        finally:
            tree.warn()

    def check_answers(self, data: RetrievalData) -> None:
        """Warn of test images that train too, and of what any data set is warned of."""
        super().check_answers(data)
        warn_of_trained(self.card.name, data)

    def _split(self, tree: Tree) -> Listing:
        """The listing of what trains and what is tested, by lists or folders."""
        root = tree.root
        if self.train_list:
            parts = _from_lists(root, (Path(self.train_list), Path(self.test_list)))
        elif (root / "train").is_dir() and (root / "test").is_dir():
            if self.train_classes:
                raise UserError(
                    f"data set folder: {root} has train/ and test/, so train_classes is not "
                    "read: leave it out"
                )
            for part in ("", "train", "test"):
                tree.leave_out_loose(part)
            parts = [
                [entry for name in tree.classes(part) for entry in tree.files(part, name)]
                for part in ("train", "test")
            ]
        elif (root / "train").is_dir() or (root / "test").is_dir():
            raise UserError(
                f"data set folder: {root} has one of train/ and test/: rename the folder of "
                "the other split, or give train_list and test_list"
            )
        else:
            parts = self._by_class(tree)
        names = sorted({name for part in parts for name, _ in part})
        label = {name: place for place, name in enumerate(names)}
        train, test = (tuple((path, label[name]) for name, path in part) for part in parts)
        return Listing(root, train, test)

    def _apart(self, tree: Tree) -> Listing:
        """The listing of queries, gallery and what trains."""
        parts = (
            self._trained(tree),
            self._entries(tree, "query", self.query),
            self._entries(tree, "gallery", self.gallery),
        )
        names = sorted({name for part in parts for name, _ in part if name})
        label = {name: place for place, name in enumerate(names)} | {"": -1}
        learnt, test, searched = (
            tuple((path, label[name]) for name, path in part) for part in parts
        )
        query, gallery = (
            [os.path.relpath(tree.root / path, folder) for _, path in part]
            for part, folder in zip(parts[1:], (self.query, self.gallery), strict=True)
        )
        answers = sources = None
        if self.positives:
            answers = read_answers(Path(self.positives), query, gallery, self.level)
        if self.sources:
            own_ids, their_ids = numbered(*read_sources(Path(self.sources), query, gallery))
            sources = own_ids, their_ids
        return Listing(tree.root, learnt, test, searched, answers, sources)

    def _trained(self, tree: Tree) -> list[tuple[str, str]]:
        """(class, path) of what trains: the images in root that no query or gallery folder has."""
        if not self.root:
            return []
        own = Path(self.root).absolute()
        inside = own / "train" if (own / "train").is_dir() else own
        below = inside.relative_to(tree.root).as_posix()
        apart = [Path(path).resolve() for path in (self.query, self.gallery)]

        @functools.cache
        def trains(folder: Path) -> bool:
            place = folder.resolve()
            return not any(place.is_relative_to(one) for one in apart)

        if trains(inside):
            tree.leave_out_loose(below)
        return [
            (name, path)
            for one in tree.classes(below)
            for name, path in tree.files(below, one)
            if trains((tree.root / path).parent)
        ]

    def _entries(self, tree: Tree, key: str, path: str) -> list[tuple[str, str]]:
        """(class, path) of each query or gallery image; the class is empty where there is none."""
        folder = Path(path).absolute()
        if not folder.is_dir():
            raise UserError(f"data set folder: {key} {path} is not a folder")
        below = folder.relative_to(tree.root).as_posix()
        loose = [("", file) for _, file in tree.files(below, "", deep=bool(self.positives))]
        classes = () if self.positives else tree.classes(below)
        found = [*(e for name in classes for e in tree.files(below, name)), *loose]
        if not found:
            raise UserError(f"data set folder: {key} {path} has no image file in it")
        return found

    def _by_class(self, tree: Tree) -> list[list[tuple[str, str]]]:
        tree.leave_out_loose("")
        files = {name: tree.files("", name) for name in tree.classes("")}
        classes = [name for name, found in files.items() if found]
        cut = len(classes) // 2 if self.train_classes is None else self.train_classes
        if not 0 < cut < len(classes):
            found = counted(len(classes), "folder", "folders")
            raise UserError(
                f"data set folder: {tree.root} has {found} with images, which "
                f"cannot be split into {cut} that train and others that test"
            )
        return [
            [entry for name in part for entry in files[name]]
            for part in (classes[:cut], classes[cut:])
        ]


def _from_lists(root: Path, lists: Sequence[Path]) -> list[list[tuple[str, str]]]:
    """(class, path) of each line of each list; UserError if two lines name one file."""
    places: dict[str, str] = {}
    parts: list[list[tuple[str, str]]] = [[] for _ in lists]
    for part, path in zip(parts, lists, strict=True):
        for number, (name, file) in numbered_table(path, "CLASS IMAGE"):
            place, known = f"{path}, line {number}", os.path.normpath(root / file)
            if is_image(name) and not is_image(file):
                raise UserError(
                    f"{place}: the class comes first, then the path of the image; here {name} "
                    f"stands before {file}: swap the columns"
                )
            if known in places:
                raise UserError(
                    f"{place}: {file} is in {places[known]} too, and a query that is there twice "
                    "finds itself: leave one out"
                )
            places[known] = place
            part.append((name, file))
    return parts
