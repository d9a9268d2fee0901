"""Folders of users as data sets: the classes and splits in them, and folders that cannot serve."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest

import dmlbench as dml
from dmlbench.common.errors import UserError
from dmlbench.core import spec
from dmlbench.core.naming import with_plain_paths, without_paths
from dmlbench.datasets.base import DATASETS
from dmlbench.datasets.files.cache import Cache
from dmlbench.datasets.folder import Folder
from dmlbench.models.base import canonical_model, parse_model
from tests import trees
from tests.command import Run
from tests.trees import labels


@pytest.mark.parametrize("text", ["a/b", "a/b/", "./a/b", "a//b/."])
def test_a_folder_has_one_name_however_its_path_is_written(text: str) -> None:
    folder = spec.parse(f"folder:query={text},gallery=../g/", DATASETS)
    assert spec.shown(folder) == "folder:query=a/b,gallery=../g"


def test_a_path_in_quotes_is_made_plain_and_left_out_too() -> None:
    assert (
        with_plain_paths('folder:root="./my photos/",size=32') == 'folder:root="my photos",size=32'
    )
    assert with_plain_paths('folder:root="./photos/",size=32') == "folder:root=photos,size=32"
    assert with_plain_paths('folder:root="",size=32') == 'folder:root="",size=32'
    assert without_paths('folder:root="my, photos",size=32') == "folder:root=,size=32"
    assert without_paths("fashion:subset=2") == "fashion:subset=2"


def test_a_path_may_begin_with_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    lists = "train_list=~/a,test_list=./~/b"
    folder = spec.parse(f"folder:root=~/photos/,{lists}", DATASETS)
    written = f"folder:root={tmp_path}/photos,train_list={tmp_path}/a,test_list={tmp_path}/b"
    assert spec.shown(folder) == written
    assert spec.parse(written, DATASETS) == folder
    plain = "folder:root=~nobody is called so/a~b"
    assert spec.shown(spec.parse(plain, DATASETS)) == 'folder:root="~nobody is called so/a~b"'
    model = parse_model("resnet18:weights=~/w.pt")
    assert canonical_model(model) == f"resnet18:weights={tmp_path}/w.pt"
    assert canonical_model(parse_model("resnet18:weights=./w.pt")) == "resnet18:weights=./w.pt"


def test_a_folder_splits_by_class_by_halves_or_by_lists(tmp_path: Path) -> None:
    root = trees.folder(tmp_path / "classes", classes=5, each=2)
    trees.write(root / ".hidden" / "image.jpg", b"x")
    trees.write(root / "class 000" / ".thumbs" / "a" / "image.jpg", b"x")
    trees.write(root / "class 000" / "notes.txt", b"not an image")
    trees.write(root / "class 000" / "deeper" / "image.PNG", b"x")
    first = ["deeper/image.PNG", "image 000.jpg", "image 001.jpg"]
    listing = Folder(root=str(root)).found(None)
    assert labels(listing) == ([0, 0, 0, 1, 1], [2, 2, 3, 3, 4, 4])
    assert [name for name, _ in listing.train[:3]] == [f"class 000/{name}" for name in first]
    assert labels(Folder(root=str(root), train_classes=4).found(None))[1] == [4, 4]
    halves = tmp_path / "halves"
    for part, kind in (("train", "b"), ("train", "c"), ("test", "a"), ("test", "c")):
        trees.write(halves / part / kind / "x.jpg", b"")
    listing = Folder(root=str(halves)).found(None)
    assert listing.train == (("train/b/x.jpg", 1), ("train/c/x.jpg", 2))
    assert listing.test == (("test/a/x.jpg", 0), ("test/c/x.jpg", 2))
    assert listing.shared == 1
    lists = {"train": "b some/file name.jpg\n\na x.jpg\n", "test": "c y.jpg\n"}
    paths = {}
    for part, text in lists.items():
        paths[part] = tmp_path / f"{part}.txt"
        paths[part].write_text(text)
    chosen = f"folder:root={root},train_list={paths['train']},test_list={paths['test']}"
    listing = spec.parse(chosen, DATASETS).found(None)  # type: ignore[attr-defined]
    assert listing.train == (("some/file name.jpg", 1), ("x.jpg", 0))
    assert listing.test == (("y.jpg", 2),)


def test_links_to_folders_inside_a_class_are_left_out_and_counted(tmp_path: Path) -> None:
    root = trees.folder(tmp_path / "set", classes=4, each=2)
    plain = Folder(root=str(root)).found(None)
    more = trees.folder(tmp_path / "elsewhere", classes=5, each=1)
    (root / "class 000" / "more").symlink_to(more / "class 000")
    (root / "class 001" / "deep").mkdir()
    (root / "class 001" / "deep" / "loop").symlink_to(root)
    said = "left out .*class 000/more, .*deep/loop: links to folders inside class folders are not"
    with pytest.warns(UserWarning, match=said):
        assert Folder(root=str(root)).found(None) == plain
    shutil.rmtree(root / "class 001" / "deep")
    (root / "class 000" / "more").unlink()
    (root / "class 004").symlink_to(more / "class 004")  # a class folder may be a link
    assert len(Folder(root=str(root)).found(None).test) == 5


def test_what_dmlbench_wrote_is_no_class(dmlbench: Run, tmp_path: Path) -> None:
    """Neither in the folder of classes nor deeper, and whatever a class of that name holds."""
    trees.folder(tmp_path, classes=4, each=3)
    trees.write(tmp_path / "results" / "cells" / "0.jpg", trees.jpeg(9, 0))
    trees.write(tmp_path / "results" / "1.jpg", trees.jpeg(9, 1))
    cache = str(tmp_path.with_suffix(".cache"))
    asked = ("--dataset", "folder:root=.,size=32", "--cache", cache, "--threads", "1")
    attack = ("attack", "--model", "c2f2", "--attack", "es:steps=1", "--save-adversarial", "2")
    plain = json.loads(dmlbench("data", "verify", "folder:root=.", "--json").stdout)["found"]
    assert plain["test"] == {"images": 8, "classes": 3}  # results is a class as any other
    shutil.rmtree(tmp_path / "results")
    plain = json.loads(dmlbench("data", "verify", "folder:root=.", "--json").stdout)["found"]
    assert plain["test"] == {"images": 6, "classes": 2}
    written = [
        dmlbench(*attack, *asked, "--results", "results"),
        dmlbench("leaderboard", "folder", "--against", "nothing", "--format", "plots"),
    ]
    shutil.copytree(tmp_path / "results", tmp_path / "class 002" / "own")
    assert [one.returncode for one in written] == [0, 0], written
    for folder in ("results", "class 002/own", "leaderboards"):
        assert [*tmp_path.glob(f"{folder}/**/*.png")], folder
    found = dmlbench("data", "verify", "folder:root=.", "--json")
    assert json.loads(found.stdout)["found"] == plain
    (line,) = [line for line in found.stderr.splitlines() if "left out" in line]
    assert line.startswith("warning: data set folder: left out class 002/own, leaderboards, res")


def test_a_name_with_blanks_is_listed_by_tabs(tmp_path: Path) -> None:
    root = trees.folder(tmp_path / "set", classes=4, each=2)
    lines = [f"{path.parent.name} \t{path.relative_to(root)}\n" for path in root.rglob("*.jpg")]
    for name, part in (("train", lines[:4]), ("test", lines[4:])):
        (tmp_path / name).write_text("".join(part))
    lists = f"train_list={tmp_path / 'train'},test_list={tmp_path / 'test'}"
    listing = spec.parse(f"folder:root={root},{lists}", DATASETS).found(None)
    assert {name: found.classes for name, found in listing.figures.items()} == {
        "train": 2,
        "test": 2,
    }


def test_images_that_are_not_read_are_counted(tmp_path: Path) -> None:
    root = trees.folder(tmp_path, classes=4, each=2)
    plain = Folder(root=str(root)).found(None)
    for name in ("a.HEIC", "b.heic", "c.dng", "Thumbs.db", ".DS_Store", "LICENSE", "list.csv"):
        trees.write(root / "class 000" / name, b"x")
    trees.write(root / "phone" / "d.heic", b"x")
    trees.write(root / "class 001" / "IMG_1", b"x")
    trees.write(root / "loose.jpg", trees.jpeg(0, 0))
    with warnings.catch_warnings(record=True, action="always") as said:
        assert Folder(root=str(root)).found(None) == plain
    assert [str(one.message).removeprefix("data set folder: left out ") for one in said] == [
        "3 .heic, 1 .dng: image files of these kinds are not read: convert them to PNG or JPEG",
        f"{root}/class 001/IMG_1: files without an ending are not read: give images theirs, such "
        "as .jpg",
        f"{root}/loose.jpg: images in no class folder have no class: move each into the folder of "
        "its class",
        f"{root}/phone: folders without an image that is read are no classes",
    ]


def test_loose_images_are_left_out_of_what_trains_alone(tmp_path: Path) -> None:
    """Loose images of the gallery are distractors."""
    for part in ("train", "query", "gallery"):
        trees.folder(tmp_path / part, classes=2, each=2)
    trees.write(tmp_path / "gallery" / "distractor.jpg", trees.jpeg(9, 9))
    query, gallery = str(tmp_path / "query"), str(tmp_path / "gallery")
    chosen = Folder(root=str(tmp_path), query=query, gallery=gallery)
    plain = chosen.found(None)
    assert len(plain.gallery or ()) == 5
    trees.write(tmp_path / "train" / "loose.jpg", trees.jpeg(9, 8))
    with pytest.warns(UserWarning, match=r"left out \S*/train/loose.jpg: images in no class"):
        assert chosen.found(None) == plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "name it with --dataset folder:root=DIR"),
        ("root=absent", "root absent is not a folder"),
        ("root=one", "1 folder with images, which cannot be split into 0 that train"),
        ("root=two,train_classes=2", "into 2 that train"),
        ("root=single", "the train split in single has one image a class"),
        ("root=two", "the train split in two has a single class"),
        ("root=imagenet", "imagenet has one of train/ and test/"),
        ("root=empty", "empty has 0 folders with images"),
        ("root=two,train_list=absent,test_list=absent", "absent cannot be read"),
        (
            "root=two,train_list=bad,test_list=bad",
            "bad, line 1: expected 'CLASS IMAGE', separated by tabs",
        ),
        (
            "root=two,train_list=swapped,test_list=bad",
            "swapped, line 2: the class comes first, .* x/1.jpg stands before a: swap the columns",
        ),
        ("root=two,train_list=binary,test_list=bad", "binary is not a text file"),
        ("root=two,train_list=gone,test_list=gone2", "two lacks nowhere.jpg"),
        (
            "root=two,train_list=gone,test_list=twice",
            "^twice, line 4: ./x//1.jpg is in twice, line 1 too, and a query .* leave one out$",
        ),
        ("root=two,train_list=twice,test_list=gone", "twice, line 4: .* is in twice, line 1 too"),
        ("root=two,train_list=once,test_list=once", "once, line 1: .* is in once, line 1 too"),
        ("root=two,train_list=once,test_list=twice", "twice, line 3: .* is in once, line 1 too"),
        ("root=two,train_list=bad", "train_list and test_list go together"),
        ("root=two,train_list=bad,test_list=bad,train_classes=1", "train_classes is not read"),
        ("root=halves,train_classes=1", "halves has train/ and test/, so train_classes is not"),
        ("root=two,level=hard", "level goes with positives"),
        (
            "root=broken",
            r"a/0.jpg \(not an image that Pillow knows\).*b/0.jpg \(image file is truncated",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:data set folder. left out")
def test_a_folder_that_cannot_serve_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    trees.folder(Path("one"), classes=1, each=2)
    trees.folder(Path("two"), classes=2, each=2)
    trees.folder(Path("single"), classes=4, each=1)
    trees.folder(Path("imagenet/train"), classes=2, each=2)
    trees.folder(Path("imagenet/val"), classes=2, each=2)
    trees.folder(Path("halves/train"), classes=2, each=2)
    trees.folder(Path("halves/test"), classes=2, each=2)
    for name in ("empty/a", "empty/b"):
        Path(name).mkdir(parents=True)
    trees.write(Path("broken/a/0.jpg"), b"\xff\xd8 no picture")
    trees.write(Path("broken/b/0.jpg"), trees.jpeg(0, 0)[:-200])
    for name in ("a", "b", "c", "d"):
        for number in (1, 2):
            trees.write(Path(f"broken/{name}/{number}.jpg"), trees.jpeg(0, 0))
    Path("bad").write_text("alone\n")
    Path("swapped").write_text("\nx/1.jpg a\n")
    Path("binary").write_bytes(b"\xff\xfe\x00")
    Path("gone").write_text("a nowhere.jpg\na 1.jpg\nc 2.jpg\n")
    Path("gone2").write_text("b 3.jpg\nb 4.jpg\nd 5.jpg\n")
    Path("twice").write_text("a x/1.jpg\n\nb x/2.jpg\na ./x//1.jpg\n")
    Path("once").write_text("c x/2.jpg\n")
    with pytest.raises(UserError, match=message):
        spec.parse(f"folder:{arguments}" if arguments else "folder", DATASETS).load(
            None, Cache(Path("cache"))
        )
    assert not list(Path().rglob("*.pixels")) + list(Path().rglob("*.partial"))


def test_queries_that_are_alone_in_their_class_are_warned_of(tmp_path: Path) -> None:
    trees.folder(tmp_path / "set", classes=4, each=2)
    for name in "xyz":
        trees.write(tmp_path / "set" / name / "0.jpg", trees.jpeg(9, ord(name)))
    chosen, said = Folder(root=str(tmp_path / "set")), "3 of 5 queries have no answer among the"
    with pytest.warns(
        UserWarning, match=f"^folder: {said} other test images: such a query is attacked"
    ):
        data = chosen.load(None, Cache(tmp_path / "cache"))
    with pytest.warns(UserWarning, match=f"^arrays: {said}"):
        dml.from_arrays(data.test.images, data.test.labels)


def test_classes_in_both_splits_are_warned_of(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for i in range(2):
            trees.write(tmp_path / part / "a" / f"{i}.jpg", trees.jpeg(0, i))
            trees.write(tmp_path / part / part / f"{i}.jpg", trees.jpeg(1, i))
    with (
        pytest.warns(UserWarning, match="1 class is in both splits"),
        pytest.warns(UserWarning, match="4 of 4 test images train too"),
    ):
        Folder(root=str(tmp_path)).load(None, Cache(tmp_path / "cache"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone without permission")
@pytest.mark.parametrize("path", ["", "class 000", "class 000/image 000.jpg"])
def test_a_path_without_permission_is_named(path: str) -> None:
    with tempfile.TemporaryDirectory() as place:  # tmp_path has parents that only root may enter
        Path(place).chmod(0o777)
        root = trees.folder(Path(place) / "set", classes=4, each=2)
        (root / path).chmod(0)
        os.seteuid(65534)
        try:
            with pytest.raises(UserError, match=f"{Path(path).name}.*Permission denied"):
                Folder(root=str(root)).load(None, Cache(Path(place) / "cache"))
        finally:
            os.seteuid(0)
