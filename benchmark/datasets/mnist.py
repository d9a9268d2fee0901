"""MNIST."""

from __future__ import annotations

from dataclasses import dataclass

from dmlbench.core.papers import Paper
from dmlbench.core.protocol import Recipe, TrainingThreat
from dmlbench.datasets.base import DATASETS, DatasetCard, Figures
from dmlbench.datasets.idx import THREAT, IdxDataset

MNIST = Paper(
    key="lecun1998mnist",
    title="The MNIST Database of Handwritten Digits",
    authors="LeCun, Yann and Cortes, Corinna and Burges, Christopher J. C.",
    venue="online",
    year=1998,
    url="http://yann.lecun.com/exdb/mnist",
)

FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@DATASETS.register
@dataclass(frozen=True, kw_only=True)
class Mnist(IdxDataset):
    """The digits, from files on disk or torchvision's download."""

    card = DatasetCard(
        "mnist",
        "MNIST: 60,000 train and 10,000 test images, 28x28 grey, 10 classes",
        MNIST,
        model="c2f2",
        recipe=Recipe(epochs=8, pairs=128, lr=1e-3, weight_decay=1e-7),
        threat=THREAT,
        training_threat=TrainingThreat(eps=77 / 255, eta=32),
        train=Figures(60_000, 10),
        test=Figures(10_000, 10),
        source="'dmlbench data download mnist', or put the four idx files into mnist/ of the data "
        "root",
    )
    files = FILES
    torchvision = "MNIST"
    folder = "mnist"
