"""Make fashion-mini.npz from the full Fashion-MNIST: ``python make.py [DATA_ROOT]``.

It writes the same bytes everywhere: the draw is seeded, and the archive carries no dates. After a
change, put the digest that it prints into ``EMBEDDED_SHA256`` of ``dmlbench/datasets/fashion.py``.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

from dmlbench.datasets.fashion import EMBEDDED, Fashion, subset

TRAIN, TEST = 6000, 1000

if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    mini = subset(Fashion().load(root), TRAIN, TEST)
    np.savez_compressed(
        EMBEDDED,
        train_images=mini.train.images,
        train_labels=mini.train.labels.astype(np.uint8),
        test_images=mini.test.images,
        test_labels=mini.test.labels.astype(np.uint8),
    )
    print(hashlib.sha256(EMBEDDED.read_bytes()).hexdigest())
