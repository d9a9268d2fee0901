"""The PGD engine: its arithmetic, its active set, and its errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlbench.attacks.engine.pgd import PGD
from dmlbench.common.errors import CellError
from dmlbench.compute.embedding import EmbeddingModel, embed, frozen
from dmlbench.testing import tiny_network
from tests.goals import Hinge


def plain_pgd(
    model: EmbeddingModel, clean: torch.Tensor, goal: Hinge, eps: float, alpha: float, steps: int
) -> torch.Tensor:
    """The textbook loop, through autograd, for the whole batch and every step."""
    x = clean.clone()
    for _ in range(steps):
        x = x.detach().requires_grad_()
        e = model(x)
        loss = ((e * goal.target).sum(1) - goal.offset).relu().sum()
        (gradient,) = torch.autograd.grad(loss, x)
        with torch.no_grad():
            x = x - alpha * gradient.sign()
            x = torch.max(torch.min(x, clean + eps), clean - eps).clamp(0, 1)
    return x.detach()


@pytest.fixture
def problem() -> tuple[torch.Tensor, Hinge]:
    clean = torch.rand(40, 1, 8, 8)
    return clean, Hinge(torch.randn(40, 8), torch.rand(40) - 0.5)


@pytest.mark.parametrize("active_set", [True, False])
def test_equals_the_textbook_loop_to_the_bit(
    model: EmbeddingModel, problem: tuple[torch.Tensor, Hinge], active_set: bool
) -> None:
    clean, goal = problem
    found = PGD(0.1, 0.03, 12, active_set).run(lambda x: embed(model, x), clean, goal)
    assert torch.equal(found.images, plain_pgd(model, clean, goal, 0.1, 0.03, 12))
    assert found.full_passes == 40 * 12
    if active_set:
        assert found.passes < found.full_passes * 0.9  # it does save something here
    else:
        assert found.passes == found.full_passes


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_batch_size_changes_no_bit(
    model: EmbeddingModel, problem: tuple[torch.Tensor, Hinge], batch: int
) -> None:
    clean, goal = problem
    pgd = PGD(0.1, 0.03, 8)
    whole = pgd.run(lambda x: embed(model, x), clean, goal).images
    parts = [
        pgd.run(lambda x: embed(model, x), clean[rows], goal.take(rows)).images
        for rows in torch.arange(40).split(batch)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_a_network_that_hides_its_gradient_starts_flat(
    problem: tuple[torch.Tensor, Hinge],
) -> None:
    """Not where the loss is flat: such a sample is done, and says nothing of the network.

    Autograd returns its zero gradient expanded: such a tensor cannot be changed in place.
    """
    clean, goal = problem

    def hidden(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).detach()[:, :8] + 0 * x.sum()

    live = goal.value_and_grad(hidden(clean), 0)[1].any(1)
    assert 0 < live.sum() < len(live)
    for cut in (hidden, lambda x: hidden(x).detach()):
        found = PGD(0.1, 0.03, 3).run(cut, clean, goal)
        assert torch.equal(found.flat_start, live)
        assert torch.equal(found.images, clean)


def test_one_step_of_eps_is_fgsm(
    model: EmbeddingModel, problem: tuple[torch.Tensor, Hinge]
) -> None:
    clean, goal = problem
    found = PGD(0.1, 0.1, 1).run(lambda x: embed(model, x), clean, goal).images
    moved = (found - clean).abs()
    inner = (clean > 0.1) & (clean < 0.9) & (moved > 0)
    torch.testing.assert_close(moved[inner], torch.full_like(moved[inner], 0.1))


@settings(max_examples=25, deadline=None)
@given(
    eps=st.floats(0, 1),
    alpha=st.floats(1e-3, 1),
    steps=st.integers(1, 4),
    seed=st.integers(0, 999),
)
def test_stays_in_the_ball_and_in_the_pixel_range(
    model: EmbeddingModel, eps: float, alpha: float, steps: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(6, 1, 8, 8, generator=generator)
    goal = Hinge(torch.randn(6, 8, generator=generator), torch.full((6,), -9.0))
    before = clean.clone()
    found = PGD(eps, alpha, steps).run(lambda x: embed(model, x), clean, goal).images
    assert (found - clean).abs().max() <= eps + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(clean, before)  # the caller's images are not touched


def test_an_empty_batch_is_no_work() -> None:
    goal = Hinge(torch.empty(0, 8), torch.empty(0))
    found = PGD(0.1, 0.1, 3).run(lambda x: x.flatten(1), torch.empty(0, 1, 2, 2), goal)
    assert found.passes == 0
    assert found.images.shape == (0, 1, 2, 2)


def test_a_loss_that_is_not_finite_fails(
    model: EmbeddingModel, problem: tuple[torch.Tensor, Hinge]
) -> None:
    clean, goal = problem
    bad = dataclasses.replace(goal, offset=torch.full((40,), torch.nan))
    with pytest.raises(CellError, match="not finite"):
        PGD(0.1, 0.1, 3).run(lambda x: embed(model, x), clean, bad)


@pytest.mark.parametrize("shift", [0.11, -0.11, 5.0])
def test_verification_catches_an_image_outside(shift: float) -> None:
    clean = torch.full((2, 1, 2, 2), 0.5)
    with pytest.raises(CellError, match="radius"):
        PGD(0.1, 0.1, 1).verify(clean, clean + shift)


def test_a_run_whose_images_leave_the_ball_fails(
    model: EmbeddingModel, problem: tuple[torch.Tensor, Hinge], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PGD, "shown", lambda self, x, ball: (x + 0.2).clamp(0, 1))
    clean, goal = problem
    with pytest.raises(CellError, match="radius"):
        PGD(0.1, 0.1, 2).run(lambda x: embed(model, x), clean, goal)


def test_frozen_restores_modes_and_gradients() -> None:
    network = tiny_network()
    network.train()
    network.backbone[0].eval()  # a module that was frozen on purpose
    network.backbone[0].weight.requires_grad_(False)
    with frozen(network):
        assert not any(m.training for m in network.modules())
        assert not any(p.requires_grad for p in network.parameters())
    assert network.training
    assert not network.backbone[0].training
    assert not network.backbone[0].weight.requires_grad
    assert network.backbone[4].weight.requires_grad


class Returns(torch.nn.Module):
    """Puts what ``torch.nn.Flatten`` gives into the form that a function makes of it."""

    def __init__(self, form: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.form = form

    def forward(self, images: torch.Tensor) -> object:
        return self.form(images.flatten(1))


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (lambda x: x[:, :, None, None], r"got \(4, 64, 1, 1\): return output\.flatten\(1\)$"),
        (lambda x: x[:, :0], r"got \(4, 0\)$"),
        (lambda x: x[0], r"got \(64,\)$"),
        (lambda x: (x, x), r"got tuple of 2: return the embedding alone, as output\[0\]$"),
        (
            lambda x: {"logits": x, "embedding": x},
            r"got dict with 'logits', 'embedding': .* alone, as output\['embedding'\]$",
        ),
        (lambda _: None, "got NoneType: return the embedding alone$"),
    ],
)
def test_a_network_of_another_output_is_named_with_a_remedy(
    form: Callable[[torch.Tensor], object], said: str
) -> None:
    with pytest.raises(CellError, match=rf"must map \(4, 1, 8, 8\) images to \(4, D\).*{said}"):
        EmbeddingModel(Returns(form), "N")(torch.rand(4, 1, 8, 8))


def test_input_normalisation_is_inside_the_model() -> None:
    inner = torch.nn.Flatten()
    network = EmbeddingModel(inner, "E", mean=(0.5, 0.2), std=(0.5, 0.1))
    images = torch.rand(3, 2, 4, 4)
    expected = torch.stack([(images[:, 0] - 0.5) / 0.5, (images[:, 1] - 0.2) / 0.1], 1)
    torch.testing.assert_close(network(images), expected.flatten(1))
    assert network.state_dict() == {}  # constants are not weights
