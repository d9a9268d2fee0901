"""Loaders of image data sets in the official layouts: splits, labels, order, pixels, and errors."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

import dmlbench as dml
from dmlbench.common.errors import UserError
from dmlbench.core import spec
from dmlbench.datasets.base import DATASETS, Figures, RetrievalData, Split
from dmlbench.datasets.cars import Cars
from dmlbench.datasets.cub import Birds
from dmlbench.datasets.files.cache import Cache
from dmlbench.datasets.files.decoding import decode
from dmlbench.datasets.folder import Folder
from dmlbench.datasets.grocery import Grocery
from dmlbench.datasets.images import ImageDataset, Listing
from dmlbench.datasets.sop import Products
from dmlbench.defenses.hm import HardnessManipulation
from tests import trees

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Tree = Callable[[Path], Path]
LAYOUTS: dict[str, tuple[ImageDataset, Tree]] = {
    "cub": (Birds(), trees.cub),
    "cars": (Cars(), trees.cars),
    "stanford_cars": (Cars(), trees.stanford_cars),
    "sop": (Products(), trees.sop),
    "grocery": (Grocery(), trees.grocery),
}


def labels(listing: Listing) -> tuple[list[int], list[int]]:
    return [label for _, label in listing.train], [label for _, label in listing.test]


def test_cub_splits_by_class_in_the_order_of_its_list(tmp_path: Path) -> None:
    trees.cub(tmp_path)
    listing = Birds().found(tmp_path)
    assert labels(listing) == ([0, 0, 1, 1, 99, 99], [100, 100, 199, 199])
    assert listing.train[0][0] == "images/001.Bird_1/Bird 1_0.jpg"
    assert listing == Birds().found(tmp_path / "CUB_200_2011")  # the folder itself may be named


def test_cars_sorts_by_path(tmp_path: Path) -> None:
    trees.cars(tmp_path)
    listing = Cars().found(tmp_path)
    assert labels(listing) == ([0, 0, 97, 97], [98, 98, 195, 195])
    assert listing.train[0][0] == "car_ims/000100.jpg"


def test_cars_takes_torchvisions_halves_together(tmp_path: Path) -> None:
    from torchvision.datasets import StanfordCars

    root = trees.stanford_cars(tmp_path)
    meta = {"class_names": np.array([[f"car {i}" for i in range(196)]], object)}
    trees.savemat(root / "devkit" / "cars_meta.mat", meta)
    listing = Cars().found(tmp_path)
    assert labels(listing) == ([0, 0, 97, 97] * 2, [98, 98, 195, 195] * 2)
    ours = {(str(root / name), label) for name, label in (*listing.train, *listing.test)}
    theirs = [StanfordCars(tmp_path, split)._samples for split in ("train", "test")]
    assert ours == set(theirs[0] + theirs[1])


def test_the_devkits_unlabelled_annotations_are_refused(tmp_path: Path) -> None:
    root = trees.stanford_cars(tmp_path)
    trees.save_structs(root / "cars_test_annos_withlabels.mat", ["fname"], [("00001.jpg",)])
    with pytest.raises(UserError, match="has no annotations with fname and class"):
        Cars().found(tmp_path)
    (root / "cars_test_annos_withlabels.mat").write_bytes(b"not MATLAB")
    with pytest.raises(UserError, match="fetch it again"):
        Cars().found(tmp_path)


def test_sop_reads_both_lists_below_their_headers(tmp_path: Path) -> None:
    root = trees.sop(tmp_path)
    listing = Products().found(tmp_path)
    assert labels(listing) == ([0, 0, 1, 1], [11318, 11318, 22633, 22633])
    (root / "Ebay_test.txt").write_text("1 11319 3 chair_final/1.JPG\n")
    with pytest.raises(UserError, match="does not begin with 'image_id"):
        Products().found(tmp_path)


def test_grocery_takes_all_lists_and_splits_by_product_or_by_coarse_class(tmp_path: Path) -> None:
    root = trees.grocery(tmp_path)
    listing = Grocery().found(tmp_path)
    assert labels(listing) == (
        [0, 0, 40, 40, 0, 0, 0, 0, 40, 40],  # train.txt, val.txt, test.txt
        [41, 41, 43, 43, 44, 44, 80, 80, 41, 41, 44, 44, 41, 41, 43, 43, 44, 44, 80, 80],
    )
    assert listing.train[0][0] == "train/Packages/Milk/Milk-0/Milk-0_000.jpg"
    coarse = Grocery(split="coarse")
    assert set(labels(coarse.found(tmp_path))[1]) == {44, 80}
    assert coarse.protocol.test == Figures(2_184, 37)
    files = {one.protocol.files[:8] for one in (Grocery(), coarse)}
    assert files == {"e3c4df05"}  # of all files; split=official reads none of val.txt
    assert Grocery(split="official").protocol.files.startswith("fcb7b0c1")
    for place in (root, root.parent):  # the folder itself may be named, or the clone
        assert Grocery().found(place) == listing
    (root / "val.txt").write_text("val/a.jpg, 0\n")
    with pytest.raises(UserError, match=r"val\.txt: expected 'path, product, coarse class', got"):
        Grocery().found(tmp_path)


@pytest.mark.parametrize("text", ["a/b", "a/b/", "./a/b", "a//b/."])
def test_a_folder_has_one_name_however_its_path_is_written(text: str) -> None:
    folder = spec.parse(f"folder:query={text},gallery=../g/", DATASETS)
    assert spec.shown(folder) == "folder:query=a/b,gallery=../g"


def test_images_are_decoded_at_eight_sevenths_of_the_size(tmp_path: Path) -> None:
    root, cache = trees.folder(tmp_path / "set", classes=4, each=2), Cache(tmp_path / "cache")
    data = Folder(root=str(root), size=56).load(None, cache)
    assert (data.size, data.test.images.shape[2:]) == (56, (64, 64))
    pixels = data.evaluation_pixels(data.test.batch(np.arange(1), torch.device("cpu")))
    reference = transforms.Compose(
        [transforms.Resize((64, 64)), transforms.CenterCrop((56, 56)), transforms.ToTensor()]
    )
    with Image.open(root / "class 002" / "image 000.jpg") as image:
        assert torch.equal(pixels[0], reference(image))
    whole = Folder(root=str(root)).load(None, cache)  # the same files at 224 lie beside it
    assert whole.test.images.shape[2:] == (256, 256)
    assert whole.digest != data.digest


@pytest.mark.parametrize("layout", LAYOUTS)
def test_official_figures_are_insisted_on_and_missing_data_has_a_remedy(
    tmp_path: Path, layout: str
) -> None:
    dataset, tree = LAYOUTS[layout]
    with pytest.raises(UserError, match=f"{dataset.card.name} is not in .*data root"):
        dataset.load(tmp_path)
    tree(tmp_path)
    with pytest.raises(UserError, match=r"the train split in .* has .* the official one .*verify"):
        dataset.load(tmp_path)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pixels_are_those_of_the_published_transforms(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, tree = LAYOUTS[layout]
    root = tree(tmp_path)
    listing = dataset.found(tmp_path)
    figures = listing.figures
    card = replace(dataset.protocol, train=figures["train"], test=figures["test"])
    monkeypatch.setattr(type(dataset), "card", card)
    data = dataset.load(tmp_path, Cache(tmp_path / "cache"))
    assert isinstance(data.test.images, np.memmap)
    assert (data.channels, data.size) == (3, 224)
    reference = transforms.Compose(
        [transforms.Resize((256, 256)), transforms.CenterCrop((224, 224)), transforms.ToTensor()]
    )
    found = data.evaluation_pixels(data.test.batch(np.arange(len(data.test)), torch.device("cpu")))
    for (name, label), pixels, own in zip(listing.test, found, data.test.labels, strict=True):
        with Image.open(root / name) as image:
            assert torch.equal(pixels, reference(image.convert("RGB")))
        assert label == own


def test_training_crops_and_flips_each_image_by_itself() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 3, 12, 12), dtype=np.uint8)
    split = Split(images, np.zeros(64, np.int64))
    data = RetrievalData(split, split, crop=8)
    batch = split.batch(np.arange(64), torch.device("cpu"))

    def draw(seed: int) -> torch.Tensor:
        return data.training_pixels(batch, torch.Generator().manual_seed(seed))

    seen = draw(0)
    assert seen.dtype == torch.float32
    assert torch.equal(seen, draw(0))
    assert not torch.equal(seen, draw(1))
    places = set()
    for pixels, image in zip(seen, batch, strict=True):
        cuts = {
            (y, x, flip): image[:, y : y + 8, x : x + 8].flip(2)
            if flip
            else image[:, y : y + 8, x : x + 8]
            for y, x, flip in product(range(5), range(5), (False, True))
        }
        (place,) = [key for key, cut in cuts.items() if torch.equal(cut / 255, pixels)]
        places.add(place)
    assert {y for y, _, _ in places} == {x for _, x, _ in places} == set(range(5))
    assert {flip for _, _, flip in places} == {False, True}


def test_small_images_are_seen_whole_and_nothing_is_drawn(tiny: RetrievalData) -> None:
    images = tiny.train.batch(np.arange(5), torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    seen = tiny.training_pixels(images, generator)
    assert torch.equal(seen, images / 255)
    assert torch.equal(seen, tiny.evaluation_pixels(images))
    assert torch.equal(generator.get_state(), before)
    assert tiny.size == 8


def test_the_digest_follows_pixels_labels_order_and_crop(tmp_path: Path) -> None:
    root = trees.folder(tmp_path / "a", classes=4, each=2)
    cache = Cache(tmp_path / "cache")
    data = Folder(root=str(root)).load(None, cache)
    elsewhere = trees.folder(tmp_path / "other place", classes=4, each=2)
    (elsewhere / "class 000").rename(elsewhere / "another name")  # sorts first, as before
    os.utime(elsewhere / "class 001" / "image 000.jpg", (0, 0))
    assert Folder(root=str(elsewhere)).load(None, cache).digest == data.digest
    digests = {data.digest, replace(data, crop=200).digest}
    assert data.test.hashes is not None
    digests.add(replace(data, test=replace(data.test, labels=data.test.labels[::-1])).digest)
    trees.write(root / "class 003" / "image 001.jpg", trees.jpeg(3, 77))
    digests.add(Folder(root=str(root)).load(None, cache).digest)
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("RGBA", "PNG"),
        ("P", "GIF"),
        ("1", "PNG"),
        ("LA", "PNG"),
        ("1", "TIFF"),
        ("CMYK", "TIFF"),
    ],
)
def test_every_8_bit_mode_is_read_as_rgb(tmp_path: Path, mode: str, format: str) -> None:
    original = trees.picture(1, 1)
    original.convert(mode).save(tmp_path / "x", format)
    pixels = decode((tmp_path / "x").read_bytes())
    with Image.open(tmp_path / "x") as image:
        assert image.mode == mode
        expected = transforms.Resize((256, 256))(image.convert("RGB"))
    assert np.array_equal(pixels, np.asarray(expected).transpose(2, 0, 1))


def test_a_large_image_is_read_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    trees.picture(1, 1).save(file, "PNG")
    width, height = Image.open(file).size
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", width * height - 1)
    assert decode(file.getvalue(), 8).shape == (3, 8, 8)  # a warning is an error


def deep_png(colour: int, channels: int) -> bytes:
    """A 9 x 9 PNG of 16 bits a channel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 16, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(9 * (1 + 9 * channels * 2))))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def deep_tiff() -> bytes:
    """A 9 x 9 TIFF of three channels of 16 bits."""
    size, directory = 9 * 9 * 3 * 2, 8 + 2 + 8 * 12 + 4
    of = {256: 9, 257: 9, 258: directory, 262: 2, 273: directory + 6, 277: 3, 278: 9, 279: size}
    entries = b"".join(
        struct.pack("<HHII", tag, 3 if tag == 258 else 4, 3 if tag == 258 else 1, value)
        for tag, value in of.items()
    )
    head = b"II*\0" + struct.pack("<IH", 8, len(of)) + entries + bytes(4)
    return head + struct.pack("<3H", 16, 16, 16) + bytes(size)


@pytest.mark.parametrize(
    ("content", "mode"),
    [
        (deep_png(0, 1), "I;16"),
        (deep_png(2, 3), "RGB"),
        (deep_png(4, 2), "RGBA"),
        (deep_png(6, 4), "RGBA"),
        (deep_tiff(), "RGB"),
    ],
)
def test_more_than_8_bits_are_refused_not_clipped(content: bytes, mode: str) -> None:
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == mode  # Pillow alone would read it
        image.load()
    with pytest.raises(ValueError, match=f"mode {mode} has more than 8 bits a channel"):
        decode(content)


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
    asked = ("--dataset", "folder:root=.,size=32", "--cache", "cache", "--threads", "1")
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "name it with --dataset folder:root=DIR"),
        ("root=absent", "root absent is not a folder"),
        ("root=one", "1 folders with images, which cannot be split into 0 that train"),
        ("root=two,train_classes=2", "into 2 that train"),
        ("root=single", "the train split in single has one image a class"),
        ("root=two", "the train split in two has a single class"),
        ("root=imagenet", "imagenet has one of train/ and test/"),
        ("root=empty", "empty has 0 folders with images"),
        ("root=two,train_list=absent,test_list=absent", "absent cannot be read"),
        ("root=two,train_list=bad,test_list=bad", "bad, line 1: expected 2 words, got 'alone'"),
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
    with pytest.warns(UserWarning, match=f"^folder: {said} other test images: they are attacked"):
        data = chosen.load(None, Cache(tmp_path / "cache"))
    with pytest.warns(UserWarning, match=f"^arrays: {said}"):
        dml.from_arrays(data.test.images, data.test.labels)


def test_classes_in_both_splits_are_warned_of(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for i in range(2):
            trees.write(tmp_path / part / "a" / f"{i}.jpg", trees.jpeg(0, i))
            trees.write(tmp_path / part / part / f"{i}.jpg", trees.jpeg(1, i))
    with pytest.warns(UserWarning, match="1 classes are in both splits"):
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


def test_the_cards_are_the_papers_224_px_protocol() -> None:
    for name in ("cub", "cars", "sop", "folder", "grocery"):
        card = spec.parse(name, DATASETS).protocol
        assert (card.threat.eps, card.threat.alpha, card.threat.steps) == (8 / 255, 3 / 255, 32)
        assert (card.recipe.epochs, card.recipe.pairs) == (75, 56)
        assert (card.recipe.lr, card.recipe.weight_decay) == (1e-5, 4e-4)
        resolved = HardnessManipulation().resolve(card.training_threat, "N")
        assert (resolved.eps, resolved.alpha, resolved.eta) == (8 / 255, 1 / 255, 32)
        assert resolved.ics == (0.05 if name == "sop" else 0.5)
        given = HardnessManipulation(ics=0.2).resolve(card.training_threat, "N")
        assert given.ics == 0.2
    assert str(spec.parse("sop", DATASETS).protocol.test) == "60,502 images of 11,316 classes"
