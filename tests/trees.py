"""Image files for tests: natural-looking pictures, and data sets in their official layouts."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.io import savemat

from dmlbench.datasets.images import Listing

JPEG = {"quality": 90}


def picture(label: int, seed: int, width: int = 96, height: int = 72) -> Image.Image:
    """A patterned body of the class's colours before a cloudy background, as a camera sees it.

    Place, size, pose, light and background are the picture's own; colours and pattern the class's.
    """
    rng, kind = np.random.default_rng((label, seed)), np.random.default_rng(label)
    y, x = np.mgrid[0:height, 0:width] / height
    image = np.stack([clouds(rng, height, width) for _ in range(3)], -1) * 0.5 + rng.random(3) * 0.5
    colours, angle, pitch = kind.random((2, 3)), kind.uniform(0, np.pi), kind.uniform(8, 30)
    turn = angle + rng.normal(0, 0.2)
    centre = rng.uniform(0.35, 0.65, 2) * (width / height, 1)
    u = (x - centre[0]) * np.cos(turn) + (y - centre[1]) * np.sin(turn)
    v = (y - centre[1]) * np.cos(turn) - (x - centre[0]) * np.sin(turn)
    size = rng.uniform(0.3, 0.45)
    body = 1 / (1 + np.exp(40 * (np.hypot(u, v * kind.uniform(1.2, 2)) / size - 1)))
    stripes = 0.5 + 0.5 * np.sin(pitch * u / size + rng.uniform(0, 6))
    skin = stripes[..., None] * colours[0] + (1 - stripes[..., None]) * colours[1]
    image = image * (1 - body[..., None]) + skin * body[..., None]
    image = image * rng.uniform(0.7, 1.1) + rng.normal(0, 0.02, image.shape)
    return Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8))


def clouds(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.float64]:
    """Noise with the 1/f spectrum of natural scenes, in [0, 1]."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(width), np.fft.fftfreq(height)))
    frequency[0, 0] = np.inf
    phase = np.exp(2j * np.pi * rng.random((height, width)))
    noise = np.fft.ifft2(phase / frequency).real
    return np.asarray((noise - noise.min()) / np.ptp(noise))


@functools.cache
def jpeg(label: int, seed: int, size: tuple[int, int] = (96, 72)) -> bytes:
    buffer = io.BytesIO()
    picture(label, seed, *size).save(buffer, "JPEG", **JPEG)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def folder(root: Path, classes: int, each: int, size: tuple[int, int] = (96, 72)) -> Path:
    """Class folders."""
    for label in range(classes):
        for seed in range(each):
            write(root / f"class {label:03}" / f"image {seed:03}.jpg", jpeg(label, seed, size))
    return root


EACH = 2  # images of a class in an official layout
CUB_CLASSES = (1, 2, 100, 101, 200)


def cub(root: Path) -> Path:
    """``CUB_200_2011``, with a file name that has a space."""
    base = root / "CUB_200_2011"
    entries = [(c, f"{c:03}.Bird_{c}/Bird {c}_{i}.jpg") for c in CUB_CLASSES for i in range(EACH)]
    for seed, (label, name) in enumerate(entries):
        write(base / "images" / name, jpeg(label, seed))
    numbered = list(enumerate(entries, start=1))
    (base / "images.txt").write_text("".join(f"{i} {name}\n" for i, (_, name) in numbered))
    (base / "image_class_labels.txt").write_text("".join(f"{i} {c}\n" for i, (c, _) in numbered))
    (base / "train_test_split.txt").write_text("".join(f"{i} {i % 2}\n" for i, _ in numbered))
    return base


CARS_CLASSES = (99, 1, 98, 196)


def cars(root: Path) -> Path:
    """``cars_annos.mat`` and ``car_ims/``, the structs not in the order of the names."""
    base = root / "cars"
    entries = [(c, f"car_ims/{100 * c + i:06}.jpg") for c in CARS_CLASSES for i in range(EACH)]
    for seed, (label, name) in enumerate(entries):
        write(base / name, jpeg(label, seed))
    fields = ["relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test"]
    values = [(name, 1, 1, 90, 70, label, i % 2) for i, (label, name) in enumerate(entries)]
    save_structs(base / "cars_annos.mat", fields, values)
    return base


def stanford_cars(root: Path) -> Path:
    """The layout of torchvision's ``StanfordCars``: each half of the images has every class."""
    base = root / "stanford_cars"
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    for part, file in (
        ("train", "devkit/cars_train_annos"),
        ("test", "cars_test_annos_withlabels"),
    ):
        names = [(c, f"{EACH * k + i + 1:05}.jpg") for k, c in enumerate(CARS_CLASSES)
                 for i in range(EACH)]  # fmt: skip
        for label, name in names:
            write(base / f"cars_{part}" / name, jpeg(label, 100 * len(part) + int(name[:5])))
        save_structs(base / f"{file}.mat", fields, [(1, 1, 90, 70, c, n) for c, n in names])
    return base


def save_structs(path: Path, fields: list[str], values: Sequence[tuple[object, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    structs = np.array([list(values)], dtype=[(name, object) for name in fields])
    savemat(path, {"annotations": structs})


def sop(root: Path) -> Path:
    """``Stanford_Online_Products``, whose lists have a header."""
    base = root / "Stanford_Online_Products"
    header, image = "image_id class_id super_class_id path\n", 1
    for part, classes in (("train", (1, 2)), ("test", (11319, 22634))):
        lines = []
        for label in classes:
            for i in range(EACH):
                name = f"chair_final/1110{label}_{i}.JPG"
                write(base / name, jpeg(label, i))
                lines.append(f"{image} {label} 3 {name}\n")
                image += 1
        (base / f"Ebay_{part}.txt").write_text(header + "".join(lines))
    return base


GROCERY_CLASSES = (0, 40, 41, 43, 44, 80)
GROCERY_COARSE = {0: 0, 40: 20, 41: 20, 43: 20, 44: 21, 80: 41}


def grocery(root: Path) -> Path:
    """``GroceryStoreDataset/dataset``: every product in each list, but for val.txt."""
    base = root / "GroceryStoreDataset" / "dataset"
    for part in ("train", "val", "test"):
        lines = []
        for label in GROCERY_CLASSES[:: 2 if part == "val" else 1]:
            for i in range(EACH):
                name = f"{part}/Packages/Milk/Milk-{label}/Milk-{label}_{i:03}.jpg"
                write(base / name, jpeg(label, 10 * len(part) + i))
                lines.append(f"{name}, {label}, {GROCERY_COARSE[label]}\n")
        (base / f"{part}.txt").write_text("".join(lines))
    (base / "classes.csv").write_text("Class Name (str),Class ID (int)\n")
    return base


def labels(listing: Listing) -> tuple[list[int], list[int]]:
    """The labels of the images that train, and of those that test."""
    return [label for _, label in listing.train], [label for _, label in listing.test]
