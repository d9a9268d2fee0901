"""A data set of the user's own image files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dmlbench.common.errors import UserError
from dmlbench.core.spec import parameter
from dmlbench.datasets.base import DATASETS, DatasetCard
from dmlbench.datasets.images import RECIPE, THREAT, TRAINING_THREAT, ImageDataset, Listing, table

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
    """

    card = DatasetCard(
        "folder",
        "image files of your own: class folders, train/ and test/, or two lists of files",
        model="resnet18",
        recipe=RECIPE,
        threat=THREAT,
        training_threat=TRAINING_THREAT,
        source="name it with --dataset folder:root=DIR",
    )

    root: str = parameter("", "the folder of the images")
    train_classes: int | None = parameter(
        None, "number of class folders to train on, by name; auto: half of them", at_least=1
    )
    train_list: str = parameter(
        "", "file whose lines are 'class path' for the train split, paths below the root"
    )
    test_list: str = parameter("", "the same for the test split")

    def __post_init__(self) -> None:
        if bool(self.train_list) != bool(self.test_list):
            raise ValueError("train_list and test_list go together")

    def locate(self, data_root: Path | None) -> Path | None:
        """The folder ``root``; ``data_root`` does not matter."""
        return Path(self.root) if self.root else None

    def found(self, data_root: Path | None) -> Listing:
        """The listing of the folder ``root``; UserError if none was named."""
        if not self.root:
            raise UserError(f"data set folder: {self.protocol.source}")
        return super().found(data_root)

    def listing(self, root: Path) -> Listing:
        """Files sorted by class and name, or in the order of a list.

        A label is the position of the class among all classes, sorted by name.
        """
        try:
            if not root.is_dir():
                raise UserError(f"data set folder: root {root} is not a folder")
            if self.train_list:
                parts = [_listed(Path(path)) for path in (self.train_list, self.test_list)]
            elif (root / "train").is_dir() and (root / "test").is_dir():
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


def _files(root: Path, part: str, name: str) -> list[tuple[str, str]]:
    """(class, path below the root) of each image file of a class, in folders at any depth."""
    found = [
        Path(base, file).relative_to(root).as_posix()
        for base, _, files in os.walk(root / part / name, onerror=_raise)
        for file in files
        if Path(file).suffix.lower() in SUFFIXES and not file.startswith(".")
    ]
    return [(name, path) for path in sorted(found)]


def _listed(path: Path) -> list[tuple[str, str]]:
    return [(name, file) for name, file in table(path, 2)]


def _raise(error: OSError) -> None:
    raise error
