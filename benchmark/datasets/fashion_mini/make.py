"""Make fashion-mini.npz from the full Fashion-MNIST: ``python make.py [DATA_ROOT]``.

It writes the same bytes everywhere: the draw is seeded, and the archive carries no dates. After a
change, put the digest that it prints into ``EMBEDDED_SHA256`` of ``dmlbench/datasets/fashion.py``.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

from dmlbench.datasets.base import RetrievalData, Split
from dmlbench.datasets.fashion import EMBEDDED, Fashion

TRAIN, TEST, SEED = 6000, 1000, 0


def stratified(split: Split, size: int) -> Split:
    """Draw ``size`` images at random, equally many of each class; they stay in their order."""
    classes, generator = np.unique(split.labels), np.random.default_rng(SEED)
    members = (np.flatnonzero(split.labels == label) for label in classes)
    drawn = [generator.permutation(some)[: size // len(classes)] for some in members]
    index = np.sort(np.concatenate(drawn))
    return Split(split.images[index], split.labels[index])


def subset(full: RetrievalData) -> RetrievalData:
    """The images of fashion-mini."""
    return RetrievalData(stratified(full.train, TRAIN), stratified(full.test, TEST))


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    mini = subset(Fashion().load(root))
    np.savez_compressed(
        EMBEDDED,
        train_images=mini.train.images,
        train_labels=mini.train.labels.astype(np.uint8),
        test_images=mini.test.images,
        test_labels=mini.test.labels.astype(np.uint8),
    )
    print(hashlib.sha256(EMBEDDED.read_bytes()).hexdigest())
