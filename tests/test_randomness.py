"""Global generators are seeded inside a block, and are afterwards as they were."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from dmlbench.compute.randomness import as_trained, global_seeds


def drawn() -> tuple[float, float, float]:
    return torch.rand(()).item(), np.random.rand(), random.random()


def test_each_generator_is_seeded_and_restored() -> None:
    random.seed(0)
    np.random.seed(0)
    before = drawn()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    inside = []
    for seed in (5, 5, 6):
        with global_seeds(seed):
            inside.append(drawn())
    assert inside[0] == inside[1]
    assert not set(inside[0]) & set(inside[2])
    assert drawn() == before


def test_what_a_file_lacks_is_drawn_as_in_the_training() -> None:
    found = []
    for seed in (0, 0, 1, None):
        with as_trained(seed):
            found.append(drawn())
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_a_gpu_that_was_not_used_yet_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch would keep the seed until its first use, and then draw from it."""
    calls: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", calls.append)
    with global_seeds(5):
        first = drawn()
    monkeypatch.undo()
    with global_seeds(5):
        assert drawn() == first
    assert calls == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_generator_of_a_gpu_is_restored() -> None:
    def numbers() -> list[float]:
        found: list[float] = torch.rand(3, device="cuda").tolist()
        return found

    torch.manual_seed(3)
    expected = numbers()
    torch.manual_seed(3)
    inside = []
    for device in (None, torch.device("cuda"), torch.device("cpu")):
        with global_seeds(5, device):
            inside.append(numbers())
    assert inside[0] == inside[1] == inside[2] != expected
    assert numbers() == expected
