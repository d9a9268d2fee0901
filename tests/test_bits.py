"""``bits=8``: the search and its outcome on images that 8 bits can hold."""

from __future__ import annotations

from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from dmlbench.attacks.base import ATTACKS, Attack, Gallery
from dmlbench.attacks.engine.ball import RADIUS_TOLERANCE, LInfBall
from dmlbench.attacks.radius import levels_of_8_bits, rounds
from dmlbench.common.errors import CellError, UserError
from dmlbench.compute.embedding import EmbeddingModel, embed
from dmlbench.core import spec
from dmlbench.core.protocol import Threat

THREAT = Threat(eps=10.6 / 255, alpha=1.3 / 255, steps=4, suite="auto")


def resolved(name: str, **fields: Any) -> Attack:
    return ATTACKS.get(name)(**{"bits": 8, "steps": 4} | fields).resolve(THREAT)


def on_grid(x: torch.Tensor) -> bool:
    return torch.equal(x, (255 * x).round() / 255)


def slowly(clean: int, eps: float, value: float) -> list[float]:
    """Every k/255 of [0, 1] within eps of clean/255 that is nearest to ``value``."""
    inside = [k for k in range(256) if abs(k - clean) / 255 <= eps + RADIUS_TOLERANCE / 2]
    least = min(abs(k / 255 - value) for k in inside)
    return [k / 255 for k in inside if abs(k / 255 - value) <= least + 1e-7]


@hypothesis.given(
    st.lists(
        st.tuples(st.integers(0, 255), st.floats(-0.25, 1.25, width=32)), min_size=1, max_size=20
    ),
    st.one_of(st.integers(0, 255).map(lambda k: k / 255), st.floats(0, 1)),
)
def test_a_rounded_image_is_the_nearest_of_the_grid_in_the_ball(
    pixels: list[tuple[int, float]], eps: float
) -> None:
    levels = torch.tensor([[k for k, _ in pixels]])
    clean, x = levels.float().div(255), torch.tensor([[v for _, v in pixels]])
    found = LInfBall.around(clean, eps).rounded(x)
    assert on_grid(found)
    assert ((found >= 0) & (found <= 1)).all()
    assert ((found - clean).abs() <= eps + RADIUS_TOLERANCE).all()
    for (k, value), one in zip(pixels, found[0].tolist(), strict=True):
        assert any(abs(one - near) < 1e-6 for near in slowly(k, eps, value)), (k, value, one)


def test_between_two_levels_a_pixel_goes_towards_the_clean_one() -> None:
    clean = torch.tensor([[0, 100, 100, 255, 3]]) / 255
    x = torch.tensor([[2.5, 102.5, 97.5, 252.5, 0.5]]) / 255
    found = LInfBall.around(clean, 2.5 / 255).rounded(x)
    assert (255 * found).round().tolist() == [[2, 102, 98, 253, 1]]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("es", {}),
        ("es", {"optimizer": "pgd", "alpha": 1.3 / 255, "steps": 9}),
        ("ca+", {"restarts": 2}),
        ("top1", {}),
        ("gtt", {}),
    ],
    ids=str,
)
def test_images_have_8_bits_and_the_outcome_is_theirs(
    name: str, more: dict[str, Any], model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    attack, index = resolved(name, **more), torch.arange(16)
    images = images[:16]
    found = attack.run(model, images, index, gallery, seed=1)
    assert on_grid(found.perturbed.images)
    assert 255 * float((found.perturbed.images - images).abs().max()) == pytest.approx(10)
    if more.get("restarts") is None:  # else each column has its own worst restart
        again = attack.goal(gallery, index, 1).outcome(embed(model, found.perturbed.images))
        for column in attack.columns:
            torch.testing.assert_close(found.outcomes[column.name], again[column.name])
    plain = resolved(name, **more, bits=32).run(model, images, index, gallery, seed=1)
    assert not on_grid(plain.perturbed.images)


def test_a_broken_query_is_one_whose_rounded_image_is_broken(
    model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    index, shown = torch.arange(len(images)), []

    def watched(x: torch.Tensor) -> torch.Tensor:
        shown.append(x.detach().clone())
        return embed(model, x)

    attack = resolved("margin")
    goal = attack.goal(gallery, index, 1)
    found = attack.search().run(watched, images, goal)
    assert all(on_grid(x) for x in shown)
    right = gallery.recall_at_1(embed(model, found.images), index)
    assert 0 < right.mean() < 100
    assert found.passes < found.full_passes  # some left early, and all of those are broken
    slow = attack.search(active_set=False).run(watched, images, goal)
    assert torch.equal(slow.images, found.images)


def test_below_a_grey_level_nothing_moves(
    model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    index = torch.arange(len(images))
    found = resolved("es", eps=0.9 / 255).run(model, images, index, gallery, seed=1)
    assert torch.equal(found.perturbed.images, images)
    assert found.outcomes["ES:D"].max() < 1e-5


def test_steps_of_less_than_a_grey_level_add_up(
    model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    attack, index = resolved("tma", optimizer="pgd", alpha=0.2 / 255, steps=5), torch.arange(9)
    found = attack.run(model, images[:9], index, gallery, seed=1).perturbed.images
    assert 255 * float((found - images[:9]).abs().max()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("eps", [0.5, 1, 2, 2.5, 24])
def test_levels_of_8_bits(eps: float) -> None:
    found = levels_of_8_bits(eps / 255)
    assert found == pytest.approx([*range(1, int(np.ceil(eps))), eps])
    assert 2 ** (rounds(found) - 1) >= len(found)


def test_a_radius_is_that_of_an_image_of_8_bits(
    model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    index = torch.arange(len(images))
    attack = resolved("radius", steps=8)
    found = attack.run(model, images, index, gallery, seed=1)
    radius, moved = found.outcomes["Radius"], found.perturbed.images
    broken = (radius > 0) & (radius < 10.6 - 1e-6)
    assert broken.sum() > 5
    assert on_grid(moved)
    assert torch.equal(radius[broken], radius[broken].round())
    assert ((moved - images).abs().flatten(1).amax(1) * 255 <= radius + 1e-3).all()
    assert gallery.recall_at_1(embed(model, moved[broken]), index[broken]).max() == 0


def test_it_is_late_labelled_and_read_back() -> None:
    plain, eight = spec.parse("es", ATTACKS), spec.parse("es:bits=8", ATTACKS)
    assert spec.canonical(eight) == "es:bits=8"
    assert spec.canonical(spec.parse("es:bits=32", ATTACKS)) == "es"
    assert "bits" not in spec.values(plain)
    assert spec.values(eight)["bits"] == 8
    with pytest.raises(UserError, match="bits must be one of 8, 32, got 7"):
        spec.parse("es:bits=7", ATTACKS)
    with pytest.raises(UserError, match="bits must be a whole number, got 'x'"):
        spec.parse("es:bits=x", ATTACKS)


def test_clean_images_must_have_8_bits(
    model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    with pytest.raises(CellError, match="clean images of 8 bits"):
        resolved("es").run(model, images * 0.999, torch.arange(40), gallery, seed=1)
