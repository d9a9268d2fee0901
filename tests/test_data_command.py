"""``dmlbench data``, and whole runs on image files through real processes."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from PIL import ExifTags, Image

from dmlbench.cli.main import main
from dmlbench.datasets import grocery
from dmlbench.datasets.base import DATASETS
from dmlbench.datasets.fashion import FashionMini
from dmlbench.datasets.files.repository import clone as clone_of
from dmlbench.datasets.folder import Folder
from dmlbench.sweep.session import open_session
from tests import trees
from tests.reporters import Silent

Run = Callable[..., "subprocess.CompletedProcess[str]"]
NETWORK = """
from torch import nn

def make(dim=8):
    return nn.Sequential(
        nn.Conv2d(3, 4, 7, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(64, dim),
    )
"""


def data(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["data", *arguments])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.folder(tmp_path / "my images", classes=6, each=10)


def test_list_says_where_each_lies_or_how_to_get_it(tmp_path: Path) -> None:
    base = trees.cub(tmp_path)
    lines = data("list", "--data-root", str(tmp_path)).output
    assert (
        f"train 5,864 images of 100 classes; test 5,924 images of 100 classes\n    in {base}"
        in lines
    )
    assert "cars_annos.mat and car_ims/ into cars/ of the data root" in lines
    listed = json.loads(data("list", "--data-root", str(tmp_path), "--json").output)
    assert [entry["name"] for entry in listed] == DATASETS.names()
    (sop,) = [entry for entry in listed if entry["name"] == "sop"]
    assert sop["test"] == {"images": 60502, "classes": 11316}
    assert sop["place"] is None
    assert "Stanford_Online_Products.zip" in sop["source"]


def test_verify_holds_a_tree_against_the_official_figures(tmp_path: Path) -> None:
    base = trees.cub(tmp_path)
    images = sorted((base / "images").rglob("*.jpg"))
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:-100])
    images[3].write_bytes(images[2].read_bytes())
    done = data("verify", "cub", "--data-root", str(tmp_path))
    assert done.exit_code == 1
    for words in (
        "train 6 images of 3 classes, officially 5,864 images of 100 classes",
        "missing: 1 file: images/001.Bird_1/Bird 1_0.jpg",
        "unreadable: 1 file: images/001.Bird_1/Bird 1_1.jpg (image file is truncated",
        "same bytes: 1 group of files: images/002.Bird_2/Bird 2_0.jpg = images/002.Bird_2",
        "not sound; unpack CUB_200_2011.tgz",
    ):
        assert words in done.output
    told = json.loads(data("verify", "cub", "--data-root", str(tmp_path), "--json").stdout)
    assert told["missing"] == ["images/001.Bird_1/Bird 1_0.jpg"]
    assert told["sound"] is False


@pytest.mark.parametrize(
    ("each", "said"), [(1, "the train split in {} has one image a class; retrieval needs"), (2, "")]
)
def test_verify_finds_unsound_what_a_run_would_refuse(tmp_path: Path, each: int, said: str) -> None:
    trees.folder(tmp_path / "set", classes=4, each=each)
    done = data("verify", f"folder:root={tmp_path / 'set'}")
    assert done.exit_code == (1 if said else 0)
    assert said.format(tmp_path / "set") in done.output
    assert done.output.rstrip().endswith("\nnot sound" if said else "\nsound")


def test_verify_counts_what_decoding_ignores(root: Path) -> None:
    first, second, *_ = sorted(root.rglob("*.jpg"))
    with Image.open(first) as image:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        image.save(first, exif=exif)
        image.convert("RGBA").save(second.with_suffix(".png"))
        for number, ending in enumerate((".gif", ".png", ".tif")):
            pages = [image.rotate(90 * number + 90)]
            image.save(root / f"class 000/pages{ending}", save_all=True, append_images=pages)
    second.unlink()
    done = data("verify", f"folder:root={root}")
    assert "  1 file has a rotation in the EXIF data, which is ignored" in done.output
    assert "  1 file has transparency, which is dropped" in done.output
    assert "  3 files have more than one image (frames, pages): only the first" in done.output
    assert done.output.rstrip().endswith("\nsound")


@pytest.mark.parametrize(
    ("asked", "said", "sound"),
    [
        (
            "query=q,gallery=other",
            "no query has an answer in the gallery: the classes of both",
            False,
        ),
        (
            "query=q,gallery=g,sources=one.txt",
            "all that would be right are hidden, as junk or",
            False,
        ),
        ("query=q,gallery=g,positives=junk.txt", "no line of the list is an answer at this", False),
        ("query=q,gallery=q", "8 queries find themselves", True),
        ("query=q,gallery=g", "1 image of the gallery is a distractor", True),
        ("root=twice", "8 of 8 test images are there twice or more", True),
    ],
)
def test_verify_says_what_a_run_would_refuse_or_warn_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, said: str, sound: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    trees.folder(Path("q"), classes=2, each=4)
    trees.folder(Path("g"), classes=2, each=5, size=(40, 50))
    trees.write(Path("g/alone.jpg"), trees.jpeg(9, 9))
    trees.write(Path("other/third/0.jpg"), trees.jpeg(8, 8))
    trees.folder(Path("twice"), classes=4, each=2)
    for path in sorted(Path("twice").rglob("*.jpg")):
        trees.write(path.with_suffix(".copy.jpg"), path.read_bytes())
    images = [*Path("q").rglob("*.jpg"), *Path("g").rglob("*.jpg")]
    Path("one.txt").write_text(
        "".join(
            f"one\t{path}\n".replace("q/", "query/", 1).replace("\tg/", "\tgallery/", 1)
            for path in images
        )
    )
    answers = [f"junk\t{path.relative_to('q')}\talone.jpg\n" for path in Path("q").rglob("*.jpg")]
    Path("junk.txt").write_text("".join(answers))
    done = data("verify", f"folder:size=32,{asked}")
    assert said in done.output
    assert done.exit_code == (0 if sound else 1), done.output


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "uploadpack.allowAnySHA1InWant=true")
    command = ["git", *who, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_a_data_set_in_a_repository_is_fetched_at_its_commit_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = trees.grocery(tmp_path / "theirs")
    git(base.parent, "init", "-q")
    git(base.parent, "add", ".")
    git(base.parent, "commit", "-qm", "as published")
    commit = git(base.parent, "rev-parse", "HEAD").strip()
    told = replace(grocery.REPOSITORY, url=str(base.parent), commit=commit)
    monkeypatch.setattr(grocery, "REPOSITORY", told)
    root = ("--data-root", str(tmp_path / "ours"))
    (tmp_path / "ours").mkdir()
    done = data("download", "grocery", *root)
    assert done.exit_code == 0, done.output
    clone = tmp_path / "ours" / "GroceryStoreDataset"
    assert sorted(p.name for p in clone.iterdir()) == ["dataset"]
    found = json.loads(data("verify", "grocery", *root, "--json").stdout)
    figures = grocery.Grocery().found(tmp_path / "ours").figures
    card = replace(grocery.Grocery.card, **figures, files=found["files"])
    monkeypatch.setattr(grocery.Grocery, "card", card)
    assert "as officially\nsound" in data("verify", "grocery", *root).output
    image = next((clone / "dataset").rglob("*.jpg"))
    image.write_bytes(trees.jpeg(7, 7))
    altered = data("verify", "grocery", *root)
    assert altered.exit_code == 1
    assert "not the official one\nnot sound; put a clone of https:" in altered.output
    assert "is there already; delete it" in data("download", "grocery", *root).output
    monkeypatch.setattr(grocery, "REPOSITORY", replace(told, commit="0" * 40, folder="other"))
    absent = data("download", "grocery", *root)
    assert absent.exit_code == 2
    assert "error: git fetch failed:" in absent.output
    twice = replace(told, folder="twice")  # by two processes at once
    with ThreadPoolExecutor(2) as both:
        made = [both.submit(clone_of, twice, tmp_path / "ours", Silent()) for _ in range(2)]
        assert [one.result() for one in made] == [tmp_path / "ours" / "twice"] * 2
    left = [p.name for p in (tmp_path / "ours").iterdir() if p.suffix != ".lock"]
    assert sorted(left) == ["GroceryStoreDataset", "twice"]


def test_verify_of_what_is_not_there_says_where_to_get_it(tmp_path: Path) -> None:
    done = data("verify", "sop", "--data-root", str(tmp_path))
    assert done.exit_code == 2
    assert "Stanford_Online_Products.zip" in done.output
    done = data("download", "cars", "--data-root", str(tmp_path))
    assert done.exit_code == 2
    assert "cars cannot be downloaded: its host is gone" in done.output


def test_verify_reads_the_embedded_set_too() -> None:
    done = data("verify", "fashion-mini")
    assert done.exit_code == 0
    assert "train 6,000 images of 10 classes, as officially" in done.output


def test_a_batch_that_was_asked_for_stays_and_a_larger_set_keeps_the_cards(
    tmp_path: Path, root: Path
) -> None:
    dataset = Folder(root=str(root))
    usual = dataset.protocol.recipe
    with open_session(dataset, tmp_path, cache=tmp_path / "decoded", progress=False) as session:
        assert session.fitted(usual) == replace(usual, pairs=7)
        assert session.fitted(replace(usual, pairs=40)).pairs == 40
    with open_session(FashionMini(), tmp_path, progress=False) as session:
        assert session.fitted(FashionMini().protocol.recipe) == FashionMini().protocol.recipe


def test_image_files_are_trained_on_attacked_and_drawn(
    dmlbench: Run, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    places = ("--dataset", f"folder:root={root}", "--cache", "decoded", "--model", "net:make")
    done = dmlbench("run", *places, "--defense", "none", "--attack", "es:steps=2",
                    "--recipe", "epochs=1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "has 30 images with a partner" in done.stderr
    assert "a batch has 7 (another number: --recipe pairs=N)" in done.stderr
    assert set(pd.read_csv(tmp_path / "results" / "wide.csv")["recipe"]) == {"epochs=1,pairs=7"}
    assert "decode folder: done" in done.stderr
    table = pd.read_csv(tmp_path / "results" / "results.csv")
    assert set(table["dataset"]) == {f'folder:root="{root}"'}
    assert table[table["metric"] == "R@1"]["n"].tolist() == [30]
    assert (tmp_path / "leaderboards" / "folder.md").is_file()
    (weights,) = (tmp_path / "results" / "models").glob("*/checkpoint.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    attack = ["attack", *places, "--checkpoint", str(weights), "--attack", "es:steps=2"]
    again = CliRunner().invoke(main, [*attack, "--save-adversarial", "1"])
    assert again.exit_code == 0, again.output
    assert "decode" not in again.stderr
    assert len(list((tmp_path / "results" / "adversarial").rglob("*.png"))) == 1
    check = ("verify", f"folder:root={root}", "--cache", str(tmp_path / "decoded"))
    assert "decoded images: whole\nsound" in data(*check).output
    (pixels,) = (tmp_path / "decoded").glob("*.pixels")
    content = bytearray(pixels.read_bytes())
    content[1000] ^= 1
    pixels.write_bytes(content)
    found = data(*check)
    assert found.exit_code == 1
    assert "decoded images: damaged" in found.output


def test_verify_downloads_nothing(tmp_path: Path) -> None:
    done = data("verify", "mnist", "--data-root", str(tmp_path))
    assert done.exit_code == 2
    assert "mnist is not in" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone without permission")
@pytest.mark.parametrize("arguments", [("list",), ("verify", "cub"), ("verify", "fashion")])
def test_no_permission_is_one_line(arguments: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory() as place:  # tmp_path has parents that only root may enter
        Path(place).chmod(0)
        os.seteuid(65534)
        try:
            done = data(*arguments, "--data-root", f"{place}/sub")
        finally:
            os.seteuid(0)
    assert done.exit_code == 2
    assert f"{place}/sub: permission denied" in done.output
