"""The two balls: against slow twins, their invariants, and random places in them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlbench.attacks.engine.ball import BALLS, L2Ball, LInfBall
from dmlbench.common.errors import CellError

BOTH = pytest.mark.parametrize("norm", BALLS)


def images(seed: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Five clean images, with whole black and white areas, and places anywhere around them."""
    generator = torch.Generator().manual_seed(seed)
    clean = (2 * torch.rand(5, 2, 6, 6, generator=generator) - 0.5).clamp(0, 1)
    return clean, clean + scale * torch.randn(clean.shape, generator=generator)


def slow_l2(x: torch.Tensor, clean: torch.Tensor, eps: float) -> torch.Tensor:
    """One image after another, in float64."""
    found = []
    for one, centre in zip(x.double(), clean.double(), strict=True):
        way = one - centre
        length = math.sqrt(sum(float(pixel) ** 2 for pixel in way.flatten()))
        found.append((centre + way * min(1.0, eps / max(length, 1e-300))).clamp(0, 1))
    return torch.stack(found)


@given(seed=st.integers(0, 999), eps=st.floats(0, 9), scale=st.floats(0, 3))
@settings(max_examples=40, deadline=None)
def test_l2_projection_is_the_slow_one(seed: int, eps: float, scale: float) -> None:
    clean, x = images(seed, scale)
    found = L2Ball.around(clean, eps).project_(x.clone())
    torch.testing.assert_close(found, slow_l2(x, clean, eps).float(), atol=2e-6, rtol=1e-6)


@given(
    norm=st.sampled_from(list(BALLS)),
    seed=st.integers(0, 999),
    eps=st.one_of(st.just(0.0), st.floats(1e-4, 20)),
    scale=st.floats(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_a_projected_image_is_in_the_ball_and_stays(
    norm: str, seed: int, eps: float, scale: float
) -> None:
    clean, x = images(seed, scale)
    kind: Any = BALLS[norm]
    ball = kind.around(clean, eps)
    found = ball.project_(x.clone())
    kind.check(clean, found, eps)
    assert torch.equal(ball.project_(found.clone()), found)  # the active set relies on it
    assert torch.equal(ball.project_(clean.clone()), clean)
    one = kind.around(clean, torch.full((5,), eps)).take(torch.tensor([3]))
    assert torch.equal(one.project_(x[3:4].clone()), found[3:4])
    if eps == 0:
        assert torch.allclose(found, clean, atol=2e-6)


@BOTH
@given(seed=st.integers(0, 999), eps=st.floats(0.01, 4))
@settings(max_examples=25, deadline=None)
def test_rounded_images_have_8_bits_and_stay_in_the_ball(norm: str, seed: int, eps: float) -> None:
    clean, x = images(seed)
    clean = (255 * clean).round() / 255
    kind: Any = BALLS[norm]
    ball = kind.around(clean, eps)
    x = ball.project_(x)
    found = ball.rounded(x)
    kind.check(clean, found, eps)
    assert (255 * found - (255 * found).round()).abs().max() < 1e-4
    assert ((found - x).abs() <= 1 / 255 + 1e-6).all()
    assert torch.equal(ball.rounded(found), found)
    if norm == "l2":  # towards the clean image, pixel by pixel
        assert ((found - clean).abs() <= (x - clean).abs() + 1e-6).all()
        assert ((found - clean) * (x - clean) >= 0).all()


@BOTH
def test_directions_have_size_1_and_0_where_there_is_no_gradient(norm: str) -> None:
    dx = torch.randn(4, 1, 3, 3) * torch.tensor([1.0, 1e-30, 0.0, 1e30]).view(-1, 1, 1, 1)
    found = BALLS[norm].direction(dx)
    size = BALLS[norm].distance(found, torch.zeros_like(found))
    torch.testing.assert_close(size, torch.tensor([1.0, 1, 0, 1]))
    assert (found * dx >= 0).all()
    if norm == "l2":  # no direction of length 1 goes further up
        assert (found * dx).sum((1, 2, 3))[0] == pytest.approx(dx[0].norm().item())


@BOTH
def test_random_places_follow_from_the_query_alone(norm: str) -> None:
    clean, index = images(0)[0], torch.tensor([7, 3, 9, 1, 4])
    for place in (BALLS[norm].start, BALLS[norm].far):
        whole = place(clean, 0.5, index, 0, 1)
        assert torch.equal(place(clean[2:3], 0.5, index[2:3], 0, 1), whole[2:3])
        assert not torch.equal(place(clean, 0.5, index, 0, 2), whole)
        assert not torch.equal(place(clean, 0.5, index, 1, 1), whole)


def test_l2_starts_are_uniform_in_the_ball() -> None:
    """Of a uniform place the share of the volume within its length is uniform in [0, 1]."""
    grey, index = torch.full((3000, 1, 1, 3), 0.5), torch.arange(3000)
    way = L2Ball.start(grey, 0.3, index, 0, 1) - grey
    share = (way.flatten(1).norm(dim=1) / 0.3) ** 3
    assert share.max() <= 1 + 1e-5
    deciles = torch.quantile(share, torch.linspace(0, 1, 11))
    torch.testing.assert_close(deciles, torch.linspace(0, 1, 11), atol=0.03, rtol=0)
    mean = (way.flatten(1) / 0.3).mean(0)
    assert mean.norm() < 0.05
    far = BALLS["l2"].far(grey, 0.3, index, 0, 1)
    assert (far - grey).flatten(1).norm(dim=1).sub(0.3).abs().max() < 1e-5


def test_what_is_outside_is_refused() -> None:
    clean = torch.full((2, 1, 2, 2), 0.5)
    L2Ball.check(clean, clean + 0.05, 0.1)  # 4 pixels: a length of 0.1
    LInfBall.check(clean, clean + 0.05, 0.05)
    for kind, eps in ((L2Ball, 0.0999), (LInfBall, 0.0499)):
        with pytest.raises(CellError, match=r"radius 0.*inside \[0, 1\]"):
            kind.check(clean, clean + 0.05, eps)
    with pytest.raises(CellError, match=r"outside \[0, 1\]"):
        L2Ball.check(clean, clean + 0.6, 2)
