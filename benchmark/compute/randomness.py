"""The random numbers that a network draws for itself, made repeatable."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch

from dmlbench.common.hashing import derived_seed


def seed_all(seed: int) -> None:
    """Seed every global generator: PyTorch's, NumPy's and Python's; ``seed`` is at least 0."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def to_be_loaded() -> AbstractContextManager[None]:
    """Seeds for building a network whose weights are read from a file afterwards.

    What the file lacks, such as a random buffer that is not saved, is then always the same.
    """
    return global_seeds(derived_seed(0, "build"))


@contextmanager
def global_seeds(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed every global generator inside: PyTorch's, NumPy's, Python's; afterwards each is as it
    was.

    Args:
        seed: at least 0.
        device: the generator of this GPU is restored too.
    """
    numbers, python = np.random.get_state(), random.getstate()
    gpus = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        seed_all(seed)
        try:
            yield
        finally:
            np.random.set_state(numbers)
            random.setstate(python)
