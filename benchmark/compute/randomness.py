"""The random numbers that a network draws for itself, made repeatable."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed every global generator: PyTorch's, NumPy's and Python's; ``seed`` is at least 0."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


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
