"""Large images on a CPU: one query costs one, no bit depends on the batch, progress by passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dmlbench.attacks.base import ATTACKS
from dmlbench.common.errors import CellError
from dmlbench.compute.device import LARGE, PASSES, Compute
from dmlbench.compute.embedding import EmbeddingModel, embed, embed_together
from dmlbench.core.protocol import Threat
from dmlbench.datasets.base import RetrievalData, Split
from dmlbench.evaluation.evaluator import evaluation
from dmlbench.evaluation.measurement import Measurement
from tests.reporters import Silent


def network() -> EmbeddingModel:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 8, 5, stride=3), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 8),
    )  # fmt: skip
    return EmbeddingModel(nn.Sequential(*layers), "N").eval()


@dataclass
class Recording(Silent):
    """A reporter that keeps every move of its bars."""

    moves: dict[str, list[tuple[float, str | None]]] = field(default_factory=dict)

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Any]:
        moves = self.moves.setdefault(title, [])

        class Bar:
            def advance(self, amount: float, note: str | None = None) -> None:
                moves.append((amount, note))

        yield Bar()


@pytest.fixture(scope="module")
def photos() -> RetrievalData:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 3, LARGE, LARGE), dtype=np.uint8)
    split = Split(images, np.repeat(np.arange(4), 3))
    return RetrievalData(split, split)


@pytest.mark.parametrize(("side", "rows", "passed"), [(LARGE, 3, [1, 1, 1]), (28, 3, [32])])
def test_one_large_image_costs_one_and_small_ones_fill_a_batch(
    side: int, rows: int, passed: list[int]
) -> None:
    model, seen = network(), []
    model.backbone.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    embed(model, torch.rand(rows, 3, side, side))
    assert seen == passed


def test_no_bit_of_a_large_image_or_its_gradient_depends_on_the_batch() -> None:
    model, images = network(), torch.rand(9, 3, LARGE, LARGE)

    def both(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.clone().requires_grad_()
        e = embed(model, x)
        return e.detach(), torch.autograd.grad(e, x, torch.ones_like(e))[0]

    e, gradient = both(images)
    for rows in (1, 2, 5):
        parts = [both(part) for part in images.split(rows)]
        assert torch.equal(torch.cat([one for one, _ in parts]), e)
        assert torch.equal(torch.cat([one for _, one in parts]), gradient)
    torch.testing.assert_close(embed_together(model, images), e)  # as training computes it


def test_a_network_that_normalises_by_its_batch_is_refused(photos: RetrievalData) -> None:
    """Though large images pass one by one, for the most part."""
    batch = nn.BatchNorm2d(3, track_running_stats=False)
    model = EmbeddingModel(nn.Sequential(batch, *network().backbone), "N")
    with (
        evaluation(model, photos, Compute("cpu"), Silent()) as found,
        pytest.raises(CellError, match=r"alone and not in a batch.*BatchNorm2d"),
    ):
        found.benign()


def measure(
    photos: RetrievalData, name: str, steps: int, batch_size: int | None = None
) -> tuple[Measurement, Recording]:
    attack = ATTACKS.get(name)(steps=steps).resolve(Threat(eps=8 / 255, alpha=3 / 255, steps=1))
    reporter = Recording()
    with evaluation(network(), photos, Compute("cpu", batch_size), reporter) as found:
        return found.attack(attack, 0, "attack"), reporter


@pytest.mark.parametrize("name", ["es", "margin", "radius"])
def test_the_bar_moves_with_every_pass_and_ends_at_the_number_of_queries(
    photos: RetrievalData, name: str
) -> None:
    found, reporter = measure(photos, name, steps=4)
    moves = reporter.moves["attack"]
    notes = [note for _, note in moves if note is not None]
    batch = found.findings["batch_size"]
    assert len(notes) == -(-12 // batch)
    assert len(moves) >= found.findings["passes"] * 12 / batch
    assert sum(amount for amount, _ in moves) == pytest.approx(12)
    assert min(amount for amount, _ in moves) >= 0
    assert sum(amount for amount, _ in reporter.moves["embed the gallery"]) == 12


def test_a_batch_is_small_enough_for_an_early_number_and_changes_none(
    photos: RetrievalData,
) -> None:
    long, _ = measure(photos, "es", steps=PASSES // 2)
    assert long.findings["batch_size"] == 2
    short, _ = measure(photos, "es", steps=3)
    asked, _ = measure(photos, "es", steps=3, batch_size=5)
    assert (short.findings["batch_size"], asked.findings["batch_size"]) == (12, 5)
    for name, values in short.outcomes.items():
        assert np.array_equal(values, asked.outcomes[name])
