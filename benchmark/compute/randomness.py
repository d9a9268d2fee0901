"""The random numbers that a network draws for itself, made repeatable."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch

from dmlbench.common.hashing import derived_seed


def seed_all(seed: int) -> None:
    """Seed every global generator: PyTorch's, NumPy's and Python's; ``seed`` is at least 0.

    Those of GPUs are seeded too, unless there is none or the process has not used one yet: PyTorch
    would keep the seed until then, and with it a stack trace, which takes longer than seeding.
    """
    if not torch.accelerator.is_available() or (torch.cuda.is_available() and not _gpus_in_use()):
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def as_trained(seed: int | None) -> AbstractContextManager[None]:
    """Seeds for building a network whose weights are read from a file afterwards.

    What the file lacks, such as a random buffer that is not saved, is then what the training with
    this seed had; it is always the same if the training is unknown (None).
    """
    return global_seeds(derived_seed(0, "build") if seed is None else derived_seed(seed, "init"))


@contextmanager
def global_seeds(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed every global generator inside: PyTorch's, NumPy's, Python's; afterwards each is as it
    was.

    Args:
        seed: at least 0.
        device: a GPU is seeded even if the process has not used one yet.
    """
    numbers, python = np.random.get_state(), random.getstate()
    if device is not None and device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
    gpus = range(torch.cuda.device_count()) if _gpus_in_use() else ()
    with torch.random.fork_rng(devices=gpus, device_type="cuda"):
        seed_all(seed)
        try:
            yield
        finally:
            np.random.set_state(numbers)
            random.setstate(python)


def _gpus_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
