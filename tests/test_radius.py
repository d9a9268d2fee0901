"""The radius of each query: against a search of every level, and its columns."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch

from dmlbench.attacks.base import ATTACKS, Attack, Gallery
from dmlbench.attacks.radius import levels, rounds
from dmlbench.common.errors import UserError
from dmlbench.compute.embedding import EmbeddingModel, embed
from dmlbench.core import spec
from dmlbench.core.protocol import Threat
from dmlbench.metrics.bootstrap import bootstrap_median

THREAT = Threat(eps=24 / 255, alpha=0.03, steps=10, suite="auto")


def resolved(name: str = "radius", **fields: Any) -> Attack:
    return ATTACKS.get(name)(**{"steps": 8} | fields).resolve(THREAT)


@pytest.mark.parametrize("eps", [0, 0.01, 0.3, 1, 2, 8, 77, 255])
def test_levels(eps: float) -> None:
    found = levels(eps / 255)
    assert found == sorted(set(found))
    assert found[-1] == pytest.approx(eps)
    inner = found[:-1]
    assert all(level < eps for level in inner)
    steps = [b / a for a, b in itertools.pairwise(inner) if b <= 2]
    assert steps == pytest.approx([2**0.5] * len(steps))
    assert [level for level in inner if level > 2] == list(range(3, int(eps)))
    dense = [2 ** (i / 2) / 32 for i in range(13)]
    assert [level for level in inner if level <= 2] == pytest.approx([x for x in dense if x < eps])
    assert 2 ** (rounds(found) - 1) >= len(found)


def test_it_is_the_least_level_of_the_bisection_that_breaks(
    model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    """The path of each query through the levels, one margin attack after another."""
    index = torch.arange(0, 40, 4)  # alone a query costs as much as 32
    found = resolved().run(model, images[index], index, gallery, seed=0)
    radii, passes = [0.0, *levels(THREAT.eps)], 0
    for row, rows in enumerate(index.split(1)):
        held, broken, begin = 0, len(radii), images[rows]
        if gallery.recall_at_1(embed(model, images[rows]), rows) == 0:
            broken = 0
        number = 0
        while broken - held > 1:
            level = len(radii) - 1 if number == 0 else (held + broken) // 2
            ball = float(torch.tensor(radii[level]) / 255)
            attack: Any = resolved("margin", eps=ball)
            goal = attack.goal(gallery, rows, seed=0)
            one = attack.search().run(lambda x: embed(model, x), images[rows], goal, begin)
            passes += one.passes
            if goal.outcome(embed(model, one.images))["Margin"] == 0:
                broken, begin = level, one.images
            else:
                held = level
            number += 1
        expected = radii[min(broken, len(radii) - 1)]
        assert found.outcomes["Radius"][row].item() == pytest.approx(expected, rel=1e-6)
    assert len(found.outcomes["Radius"].unique()) > 4
    assert passes <= found.perturbed.passes < found.perturbed.full_passes
    moved = (found.perturbed.images - images[index]).abs().flatten(1).amax(1) * 255
    unbroken = found.outcomes["Radius"] >= 24
    assert (moved <= found.outcomes["Radius"] + 1e-3)[~unbroken].all()
    broken = gallery.recall_at_1(embed(model, found.perturbed.images), index) == 0
    assert (broken | unbroken).all()


@pytest.mark.parametrize("restarts", [0, 1, 3])
def test_what_was_saved_is_a_share_of_all_restarts(
    restarts: int, model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    attack = resolved(restarts=restarts, steps=2)
    found = attack.run(model, images, torch.arange(40), gallery, seed=0)
    assert found.perturbed.full_passes == 40 * attack.most_passes


def test_neither_batch_order_nor_active_set_change_it(
    model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    def run(rows: torch.Tensor, active_set: bool = True) -> torch.Tensor:
        attack = resolved()
        found = attack.run(model, images[rows], rows, gallery, seed=0, active_set=active_set)
        return found.perturbed.images

    index, order = torch.arange(20), torch.randperm(20)
    whole = run(index)
    assert torch.equal(whole, run(index, active_set=False))
    assert torch.equal(torch.cat([run(rows) for rows in order.split(9)]), whole[order])


def test_it_is_by_apgd_in_every_suite() -> None:
    assert spec.values(spec.parse("radius", ATTACKS).resolve(THREAT))["steps"] == 50
    strict = spec.parse("radius:suite=strict", ATTACKS).resolve(THREAT)
    assert (strict.optimizer, strict.steps) == ("apgd", 10)
    assert strict.resolve(THREAT) == strict
    with pytest.raises(UserError, match="optimizer must be apgd"):
        spec.parse("radius:optimizer=pgd", ATTACKS)


def test_the_median_has_an_interval() -> None:
    values = np.array([1.0, 5, 2, np.nan, 9, 4] * 9)
    found = bootstrap_median(values)
    assert found.value == 4
    assert found.n == 45
    assert found.low is not None
    assert found.high is not None
    assert 2 <= found.low <= 4 <= found.high <= 5


def test_a_row_has_the_mean_and_the_median(
    dmlbench: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    done = dmlbench(
        *("run", "--defense", "none", "--dataset", "tiny", "--attack", "radius:steps=1"),
        *("--recipe", "epochs=1", "--queries", "12"),
    )
    assert done.returncode == 0, done.stderr
    cells = [json.loads(p.read_text()) for p in (tmp_path / "results/cells").glob("*.json")]
    (cell,) = (c for c in cells if c["facts"]["kind"] == "attack")
    assert set(cell["metrics"]) == {"Radius", "r50"}
    assert cell["metrics"]["r50"]["value"] == pytest.approx(
        cell["findings"]["deciles"]["Radius"][5]
    )
    assert "r50" in (tmp_path / "leaderboards/tiny.md").read_text()
