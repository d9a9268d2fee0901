"""The folders of a user's image files: what is read from them, and what is left out."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from dmlbench.common.text import listed

SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"),
    *(".gif", ".jp2", ".avif"),
}
NOT_READ = {
    *(".heic", ".heif", ".hif", ".jxl", ".jxr", ".psd", ".psb", ".xcf", ".svg", ".svgz", ".eps"),
    *(".apng", ".tga", ".ico", ".pbm", ".pnm", ".pcx", ".dib", ".exr", ".hdr", ".dcm"),
    *(".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    *(".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".raf"),
    *(".rw2", ".orf", ".pef", ".srw", ".x3f", ".3fr", ".iiq", ".kdc", ".mrw", ".erf"),
}
"""Endings of image files that are not read."""
NO_IMAGES = {"README", "LICENSE", "LICENCE", "COPYING", "NOTICE", "CHANGELOG", "Makefile"}
"""Names without an ending that no image has."""

WRITTEN = ("cells/*.json", "models/*/manifest.json", "runs/*.yaml", "plots/.drawn.json")
"""Files by which a folder of results or of boards is known: its pictures are no images of a set."""


@dataclass(frozen=True)
class Tree:
    """The folders below ``root``, and what is left out of them.

    Attributes:
        root: paths are below it.
        written: folders of results or boards.
        links: links to folders inside class folders.
        unread: image file -> its ending, of those that are not read.
        bare: files without an ending.
        loose: images in no class folder.
        empty: class folders with files of which none is an image that is read.
    """

    root: Path
    written: set[Path] = field(default_factory=set)
    links: set[Path] = field(default_factory=set)
    unread: dict[Path, str] = field(default_factory=dict)
    bare: set[Path] = field(default_factory=set)
    loose: set[Path] = field(default_factory=set)
    empty: set[Path] = field(default_factory=set)

    def classes(self, part: str) -> list[str]:
        """The class folders in a folder; a link to one is one."""
        return sorted(
            one.name
            for one in (self.root / part).iterdir()
            if one.is_dir() and not one.name.startswith(".") and not self._is_written(one)
        )

    def files(self, part: str, name: str, deep: bool = True) -> list[tuple[str, str]]:
        """(class, path) of each image file of a class, in folders at any depth.

        Hidden folders are left out: they hold what programs keep for themselves, as thumbnails.

        Args:
            part, name: the images are below ``root / part / name``; ``name`` is the class.
            deep: in folders of that one too.
        """
        found, seen = [], 0
        for base, folders, files in os.walk(self.root / part / name, onerror=_raise):
            inside = [Path(base, one) for one in folders if deep and not one.startswith(".")]
            self.links.update(one for one in inside if one.is_symlink())
            folders[:] = [  # os.walk enters these
                one.name for one in inside if not (one.is_symlink() or self._is_written(one))
            ]
            found += [Path(base, file) for file in files if self._is_read(base, file)]
            seen += len(files)
        if name and seen and not found:
            self.empty.add(self.root / part / name)
        return [(name, path) for path in sorted(p.relative_to(self.root).as_posix() for p in found)]

    def leave_out_loose(self, part: str) -> None:
        """Note the images in a folder of class folders: they have no class."""
        self.loose.update(self.root / path for _, path in self.files(part, "", deep=False))

    def warn(self) -> None:
        """Say what is left out."""
        counts = Counter(self.unread.values()).most_common()
        for shown, what in (
            (_named(self.written), "what dmlbench wrote (results, boards) is no class"),
            (
                _named(self.links),
                "links to folders inside class folders are not followed: link files",
            ),
            (
                ", ".join(f"{count:,} {ending}" for ending, count in counts),
                "image files of these kinds are not read: convert them to PNG or JPEG",
            ),
            (
                _named(self.bare),
                "files without an ending are not read: give images theirs, such as .jpg",
            ),
            (
                _named(self.loose),
                "images in no class folder have no class: move each into the folder of its class",
            ),
            (_named(self.empty), "folders without an image that is read are no classes"),
        ):
            if shown:
                warnings.warn(f"data set folder: left out {shown}: {what}", stacklevel=5)

    def _is_read(self, base: str, file: str) -> bool:
        """True if a file is an image that is read; one that is not, and might be one, is noted."""
        if file.startswith("."):
            return False
        ending = Path(file).suffix.lower()
        if ending in NOT_READ:
            self.unread[Path(base, file)] = ending
        elif not ending and file not in NO_IMAGES:
            self.bare.add(Path(base, file))
        return ending in SUFFIXES

    def _is_written(self, folder: Path) -> bool:
        """True, and noted, if dmlbench wrote the folder."""
        if not any(next(folder.glob(form), None) for form in WRITTEN):
            return False
        self.written.add(folder)
        return True


def is_image(name: str) -> bool:
    """True if a file of that name is an image that is read."""
    return Path(name).suffix.lower() in SUFFIXES


def _named(paths: set[Path]) -> str:
    return listed([str(path) for path in sorted(paths)])


def _raise(error: OSError) -> None:
    raise error
