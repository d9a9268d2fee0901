"""Cars-196: the first 98 car models are for training, the last 98 for testing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dmlbench.common.errors import UserError
from dmlbench.common.files import open_file
from dmlbench.common.lazy import np
from dmlbench.core.papers import Paper
from dmlbench.datasets.base import DATASETS, DatasetCard, Figures
from dmlbench.datasets.images import (
    RECIPE,
    THREAT,
    TRAINING_THREAT,
    ImageDataset,
    LabelledPath,
    Listing,
    find,
)

CARS = Paper(
    key="krause2013cars",
    title="3D Object Representations for Fine-Grained Categorization",
    authors="Krause, Jonathan and Stark, Michael and Deng, Jia and Fei-Fei, Li",
    venue="ICCV Workshops",
    year=2013,
    url="https://doi.org/10.1109/ICCVW.2013.77",
)

TRAIN_CLASSES = 98
ONE_FILE = "cars_annos.mat"
TORCHVISION = (  # annotations and image folder of the halves of torchvision's StanfordCars
    ("devkit/cars_train_annos.mat", "cars_train"),
    ("cars_test_annos_withlabels.mat", "cars_test"),
)


@DATASETS.register
@dataclass(frozen=True, kw_only=True)
class Cars(ImageDataset):
    """``cars_annos.mat`` with ``car_ims/``, or the layout of torchvision's ``StanfordCars``.

    The two layouts name and order the images differently, so their digests differ.
    """

    card = DatasetCard(
        "cars",
        "Cars-196: cars, 98 models train and 98 others test",
        CARS,
        model="resnet18",
        recipe=RECIPE,
        threat=replace(THREAT, sp_scale=7e4),
        training_threat=TRAINING_THREAT,
        train=Figures(8_054, 98),
        test=Figures(8_131, 98),
        recalls=(1, 2, 4, 8),
        source="its host is gone; from a copy, put cars_annos.mat and car_ims/ into cars/ of the "
        "data root, or torchvision's stanford_cars/ (cars_train/, cars_test/, devkit/, "
        "cars_test_annos_withlabels.mat)",
    )

    def locate(self, data_root: Path | None) -> Path | None:
        """The folder of ``cars_annos.mat``, else torchvision's ``stanford_cars``."""
        return find(data_root, ONE_FILE, "cars", "cars196") or find(
            data_root, TORCHVISION[0][0], "stanford_cars"
        )

    def listing(self, root: Path) -> Listing:
        """Images sorted by path, torchvision's by folder and file; label = class - 1."""
        if (root / ONE_FILE).is_file():
            entries = sorted(annotated(root / ONE_FILE, "relative_im_path"))
        else:
            entries = [
                (f"{folder}/{name}", label)
                for file, folder in TORCHVISION
                for name, label in annotated(root / file, "fname")
            ]
        return Listing(
            root,
            tuple(e for e in entries if e[1] < TRAIN_CLASSES),
            tuple(e for e in entries if e[1] >= TRAIN_CLASSES),
        )


def annotated(path: Path, name: str) -> list[LabelledPath]:
    """Read file name and label (class - 1) of each image from a MATLAB file's ``annotations``.

    Args:
        path: the .mat file.
        name: the field with the file name.

    Raises:
        UserError: the file cannot be read, or lacks a field (the devkit's test annotations have
            no classes).
    """
    from scipy.io import loadmat

    try:
        with open_file(path) as file:
            structs = np.atleast_1d(loadmat(file, squeeze_me=True)["annotations"])
        found = zip(structs[name], structs["class"], strict=True)
        return [(str(file), int(label) - 1) for file, label in found]
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}): {Cars.card.source}"
        ) from None
    except Exception as error:  # scipy raises many kinds on a broken file
        raise UserError(
            f"{path} has no annotations with {name} and class ({error}): fetch it again"
        ) from None
