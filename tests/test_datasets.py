"""Data sets: their digests, and clear errors for files with wrong content."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import shutil
import struct
import urllib.error
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dmlbench as dml
from dmlbench.common.errors import UserError
from dmlbench.core import spec
from dmlbench.datasets import cifar, fashion, mnist
from dmlbench.datasets.arrays import ArrayDataset
from dmlbench.datasets.base import DATASETS, RetrievalData, Split
from dmlbench.datasets.fashion_mini import make
from dmlbench.metrics.names import benign
from dmlbench.models.base import parse_model
from dmlbench.report.terminal import all_tables
from dmlbench.testing import make_split, tiny_network

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
needs_fashion = pytest.mark.skipif(
    not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)


def test_fashion_mini_is_balanced_and_small() -> None:
    data = spec.parse("fashion-mini", DATASETS).load(None)
    assert data.train.images.shape == (6000, 1, 28, 28)
    assert data.test.images.shape == (1000, 1, 28, 28)
    assert np.bincount(data.train.labels).tolist() == [600] * 10
    assert np.bincount(data.test.labels).tolist() == [100] * 10
    folder = fashion.EMBEDDED.parent
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5_000_000
    assert "MIT License" in (folder / "LICENSE").read_text()


@needs_fashion
def test_fashion_mini_is_the_subset_its_script_makes() -> None:
    full = fashion.Fashion().load(None)
    assert full.train.images.shape == (60000, 1, 28, 28)
    assert full.test.images.shape == (10000, 1, 28, 28)
    assert make.subset(full).digest == fashion.FashionMini().load(None).digest


@needs_fashion
@pytest.mark.parametrize("layout", [".", "fashion-mnist", "FashionMNIST/raw"])
@pytest.mark.parametrize("unpacked", [True, False])
def test_fashion_is_read_from_data_root(tmp_path: Path, layout: str, unpacked: bool) -> None:
    folder = tmp_path / layout
    folder.mkdir(parents=True, exist_ok=True)
    for name in fashion.FILES:
        packed = DEBIAN / f"{name}.gz"
        if unpacked:
            (folder / name).write_bytes(gzip.decompress(packed.read_bytes()))
        else:
            shutil.copy(packed, folder)
    assert fashion.Fashion().locate(tmp_path) == tmp_path / layout
    assert len(fashion.Fashion().load(tmp_path).test) == 10000


def broken_root(tmp_path: Path, how: str) -> Path:
    """A data root whose labels are genuine in form but not in content."""
    for name in fashion.FILES:
        content = gzip.compress(b"\0\0\x08\x01\0\0\0\x02\x01\x02")
        (tmp_path / f"{name}.gz").write_bytes(content[:-6] if how == "truncated" else content)
    if how == "missing":
        (tmp_path / "train-images-idx3-ubyte.gz").unlink()
    return tmp_path


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("altered", "SHA-256 differs"),
        ("truncated", "cannot be read"),
        ("missing", "lacks train-images-idx3-ubyte"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, how: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fashion.Fashion().load(broken_root(tmp_path, how))


def test_a_folder_with_the_name_of_the_set_comes_before_the_data_root(tmp_path: Path) -> None:
    """The files in the data root may be those of MNIST, which have the same names."""
    for folder in ("FashionMNIST/raw", "fashion-mnist", "."):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name in fashion.FILES:
            (tmp_path / folder / name).write_bytes(b"")
    assert fashion.Fashion().locate(tmp_path) == tmp_path / "fashion-mnist"
    shutil.rmtree(tmp_path / "fashion-mnist")
    assert fashion.Fashion().locate(tmp_path) == tmp_path / "FashionMNIST" / "raw"
    shutil.rmtree(tmp_path / "FashionMNIST")
    assert fashion.Fashion().locate(tmp_path) == tmp_path


def test_no_files_and_no_network_gives_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(fashion.Fashion, "debian", tmp_path / "nowhere")
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", offline)
    with pytest.raises(UserError, match=r"dataset-fashion-mnist.*--data-root"):
        fashion.Fashion().load(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        fashion.Fashion().load(tmp_path / "absent")


def test_a_damaged_embedded_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytearray(fashion.EMBEDDED.read_bytes())
    content[len(content) // 2] ^= 1
    copy = tmp_path / "mini.npz"
    copy.write_bytes(content)
    monkeypatch.setattr(fashion, "EMBEDDED", copy)
    with pytest.raises(UserError, match=r"is damaged .*: install dmlbench again"):
        fashion.FashionMini().load(None)
    copy.unlink()
    with pytest.raises(UserError, match=r"no embedded data set .*: install dmlbench again"):
        fashion.FashionMini().load(None)


def test_stratified_subsets_are_balanced_and_in_order() -> None:
    split = make_split(0, classes=5, each=20)
    part = make.stratified(split, 30)
    assert np.bincount(part.labels).tolist() == [6] * 5
    assert np.array_equal(part.images, make.stratified(split, 30).images)
    assert (np.diff(part.labels) >= 0).all()  # the original order is by class


def test_the_digest_sees_every_bit(tiny: RetrievalData) -> None:
    def changed(part: str, array: str) -> str:
        splits = {"train": tiny.train, "test": tiny.test}
        values = {"images": splits[part].images.copy(), "labels": splits[part].labels.copy()}
        values[array].flat[0] ^= 1
        splits[part] = Split(**values)
        return RetrievalData(**splits).digest

    digests = {changed(p, a) for p in ("train", "test") for a in ("images", "labels")}
    assert len(digests | {tiny.digest}) == 5
    plain = hashlib.sha256()
    for split in (tiny.train, tiny.test):
        for array in (split.images, split.labels):
            plain.update(f"{array.dtype} {array.shape};".encode() + array.tobytes())
    assert tiny.digest == plain.hexdigest()


def test_splits_check_their_shapes() -> None:
    images = np.zeros((3, 1, 4, 4), np.uint8)
    with pytest.raises(ValueError, match="as many labels"):
        Split(images, np.zeros(4, np.int64))
    with pytest.raises(ValueError, match="uint8"):
        Split(images.astype(np.float32), np.zeros(3, np.int64))  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", list(DATASETS), ids=lambda cls: cls.card.name)
def test_every_card_names_things_that_exist(cls: type) -> None:
    card = cls().protocol
    assert parse_model(card.model).card.name
    assert 0 < card.threat.alpha <= card.threat.eps <= 1
    assert card.threat.steps >= 1
    assert card.training_threat.eta >= 1


def idx(content: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """An array in MNIST's file format."""
    shape = struct.pack(f">{content.ndim}I", *content.shape)
    return bytes([0, 0, 8, content.ndim]) + shape + content.tobytes()


def test_mnist_is_read_from_torchvisions_folder_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for name in mnist.FILES:
        shape = (5, 28, 28) if "idx3" in name else (5,)
        arrays[name] = rng.integers(0, 10, shape, dtype=np.uint8)
        path = tmp_path / "MNIST" / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(idx(arrays[name]))
    with pytest.raises(UserError, match="SHA-256 differs"):
        mnist.Mnist().load(tmp_path)
    digests = {name: hashlib.sha256(idx(array)).hexdigest() for name, array in arrays.items()}
    monkeypatch.setattr(mnist.Mnist, "files", digests)
    data = mnist.Mnist().load(tmp_path)
    assert np.array_equal(data.train.images[:, 0], arrays["train-images-idx3-ubyte"])
    assert np.array_equal(data.test.labels, arrays["t10k-labels-idx1-ubyte"])


@pytest.mark.parametrize("cls", [cifar.Cifar10, cifar.Cifar100])
def test_cifar_is_read_by_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cls: type[cifar.Cifar]
) -> None:
    import torchvision.datasets

    reader = getattr(torchvision.datasets, cls.torchvision)
    assert cls.folder == reader.base_folder
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", offline)
    with pytest.raises(UserError, match=r"cannot be downloaded.*data root"):
        cls().load(tmp_path)
    key = "labels" if cls is cifar.Cifar10 else "fine_labels"
    rng, folder = np.random.default_rng(0), tmp_path / cls.folder
    folder.mkdir()
    with pytest.raises(UserError, match="incomplete or damaged"):
        cls().load(tmp_path)
    pixels = {}
    for attribute in ("train_list", "test_list"):
        files = []
        for name, _ in getattr(reader, attribute):
            batch = {"data": rng.integers(0, 256, (3, 3072), dtype=np.uint8), key: [2, 0, 1]}
            pixels[name] = batch["data"].reshape(3, 3, 32, 32)  # type: ignore[attr-defined]
            (folder / name).write_bytes(pickle.dumps(batch))
            files.append([name, hashlib.md5((folder / name).read_bytes()).hexdigest()])
        monkeypatch.setattr(reader, attribute, files)
    names = {reader.meta["key"]: ["a", "b", "c"]}
    (folder / reader.meta["filename"]).write_bytes(pickle.dumps(names))
    md5 = hashlib.md5((folder / reader.meta["filename"]).read_bytes()).hexdigest()
    monkeypatch.setattr(reader, "meta", reader.meta | {"md5": md5})
    data = cls().load(tmp_path)
    assert np.array_equal(data.train.images[:3], pixels[reader.train_list[0][0]])
    assert np.array_equal(data.test.images, pixels[reader.test_list[0][0]])
    assert data.test.labels.tolist() == [2, 0, 1]


def offline(*_: object, **__: object) -> None:
    raise urllib.error.URLError("no network")


def test_the_scale_of_sp_qa_is_robranks() -> None:
    """As AdvRank.update_xi in its attacks/advrank.py has it for each data set."""
    expected = {"mnist": 2e4, "fashion": 4e4, "cub": 4e4, "cars": 7e4, "sop": 7e4}
    assert {name: DATASETS.get(name)().protocol.threat.sp_scale for name in expected} == expected


def test_the_recalls_of_a_card_are_measured_and_shown(small: ArrayDataset, tmp_path: Path) -> None:
    card = replace(small.own_card, recalls=(1, 4, 10))
    dataset = replace(small, own_card=card)
    report = dml.evaluate(
        tiny_network(), dataset, attacks="tma:steps=1", results=tmp_path, progress=False
    )
    assert {"R@1", "R@4", "R@10"} <= set(report)
    assert "R@2" not in report
    assert report["R@1"].value <= report["R@4"].value <= report["R@10"].value
    (table,) = all_tables(report.records)
    names = [column.name for column in table.columns]
    assert names[names.index("R@1") :][:4] == ["R@1", "R@4", "R@10", "mAP"]
    (said,) = (column.help for column in table.columns if column.name == "R@4")
    assert said == "Recall at 4: one of the 4 nearest items is of the query's class, in percent."
    for wrong in ((4, 10), (1, 5)):
        with pytest.raises(ValueError, match="recalls must be 1 and others of"):
            replace(card, recalls=wrong)


@pytest.mark.parametrize(
    ("name", "recalls"),
    [("cub", (1, 2, 4, 8)), ("cars", (1, 2, 4, 8)), ("sop", (1, 2, 10, 100, 1000))],
)
def test_paper_data_sets_have_the_recalls_of_their_papers(
    name: str, recalls: tuple[int, ...]
) -> None:
    dataset = spec.parse(name, DATASETS)
    assert dataset.benign == benign(recalls)
