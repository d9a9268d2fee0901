"""CUB, Cars, SOP and Grocery in their official layouts: splits, labels, order, pixels and cards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from dmlbench.common.errors import UserError
from dmlbench.core import spec
from dmlbench.datasets.base import DATASETS, Figures
from dmlbench.datasets.cars import Cars
from dmlbench.datasets.cub import Birds
from dmlbench.datasets.files.cache import Cache
from dmlbench.datasets.grocery import Grocery
from dmlbench.datasets.images import ImageDataset
from dmlbench.datasets.sop import Products
from dmlbench.defenses.hm import HardnessManipulation
from tests import trees
from tests.trees import labels

Tree = Callable[[Path], Path]
LAYOUTS: dict[str, tuple[ImageDataset, Tree]] = {
    "cub": (Birds(), trees.cub),
    "cars": (Cars(), trees.cars),
    "stanford_cars": (Cars(), trees.stanford_cars),
    "sop": (Products(), trees.sop),
    "grocery": (Grocery(), trees.grocery),
}


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
