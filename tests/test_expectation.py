"""``--eot``: randomised networks are measured in expectation over their draws."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmlbench.attacks.base import ATTACKS
from dmlbench.attacks.engine.optimizer import mean_over_draws
from dmlbench.attacks.moved_query import columns
from dmlbench.common.errors import CellError
from dmlbench.common.hashing import derived_seed
from dmlbench.compute.device import LARGE, Compute
from dmlbench.compute.embedding import EmbeddingModel
from dmlbench.core import spec
from dmlbench.core.protocol import Threat
from dmlbench.datasets.base import RetrievalData, Split
from dmlbench.datasets.fashion import FashionMini
from dmlbench.defenses.base import DEFENSES
from dmlbench.metrics.names import BENIGN
from dmlbench.models.base import parse_model
from dmlbench.storage.store import Store
from dmlbench.sweep import plan
from dmlbench.sweep.durations import _cell_kind
from dmlbench.sweep.requests import parse_all
from dmlbench.sweep.weights import trained_weights
from dmlbench.testing import tiny_network
from tests.evaluations import measured
from tests.masks import Wrapped, backbone

Run = Callable[..., "subprocess.CompletedProcess[str]"]
THREAT = Threat(eps=0.1, alpha=0.03, steps=3)


def test_a_randomised_network_is_measured_in_expectation(attacked: Run, tmp_path: Path) -> None:
    done = attacked("noisy")
    assert done.returncode == 1
    assert "not deterministic" in done.stderr
    assert "--eot 16" in done.stderr
    done = attacked("noisy", "--eot", "3")
    assert done.returncode == 0, done.stderr
    assert "w (EoT 3)" in done.stdout
    cells = [json.loads(p.read_text()) for p in (tmp_path / "results/cells").glob("*.json")]
    ok = [one for one in cells if one["status"] == "ok"]
    assert [one["facts"]["eot"] for one in ok] == [3, 3]
    (tma,) = (one for one in ok if one["facts"]["kind"] == "attack")
    assert tma["findings"]["passes"] == 3 * 4  # steps of the data set tiny
    assert tma["about"]["eot"] == "3"
    assert " EoT |" in (tmp_path / "leaderboards/tiny.md").read_text()


def test_draws_are_a_part_of_identity_and_price() -> None:
    once, thrice = (_cells(eot) for eot in (1, 3))
    assert "eot" not in once[0].facts
    assert once[0].facts["measure_version"] == 1
    assert thrice[0].facts == {**once[0].facts, "eot": 3, "measure_version": 2}
    assert {one.id for one in once}.isdisjoint(one.id for one in thrice)
    assert [_cell_kind(one.facts).passes for one in thrice] == [3, 3 * 32]


def _cells(eot: int) -> list[Any]:
    card = FashionMini().protocol
    (training,) = plan.plan(
        FashionMini(),
        "d" * 64,
        parse_model("lenet"),
        parse_all(["none"], DEFENSES),
        [0],
        card.recipe,
    )
    weights = trained_weights(training, None, Store(Path("nowhere")), Compute(eot=eot))
    attacks = plan.planned_attacks([ATTACKS.get("tma")()], card.threat)
    return [task.cell for task in plan.measures(weights, attacks, BENIGN)]


class Noise(torch.nn.Module):
    """Noise before and dropout inside, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.dropout(x + 0.1 * torch.randn_like(x), 0.2, training=True)
        e: torch.Tensor = self.inner(x.flatten(1))
        return e


def test_expectation_is_that_of_a_slow_twin(tiny: RetrievalData) -> None:
    attack = ATTACKS.get("tma")().resolve(THREAT)
    model = EmbeddingModel(Noise(), "N")
    with measured(tiny, model, eot=3) as found:
        one = found.attack(attack, 5, "tma", queries=6)
        index = found.chosen(6)
        clean = found.images(index)
        target = attack.goal(found.gallery, index, 5).target
        torch.manual_seed(derived_seed(5, "tma", int(index[0])))
        x = clean.clone()
        for _ in range(THREAT.steps):
            slopes = []
            for _ in range(3):
                here = x.clone().requires_grad_()
                loss = 1 - torch.cosine_similarity(model(here), target, dim=1)
                loss.sum().backward()
                assert here.grad is not None
                slopes.append(here.grad)
            x = x - THREAT.alpha * torch.stack(slopes).mean(0).sign()
            x = x.clamp(clean - THREAT.eps, clean + THREAT.eps).clamp(0, 1)
        with torch.no_grad():
            after = [torch.cosine_similarity(model(x), target, dim=1) for _ in range(3)]
            before = [torch.cosine_similarity(model(clean), target, dim=1) for _ in range(3)]
    for name, draws in (("TMA", after), ("TMA clean", before)):
        twin = torch.stack(draws).double().mean(0).numpy()
        np.testing.assert_allclose(one.outcomes[name][index.numpy()], twin, atol=1e-6)


def test_expectations_do_not_depend_on_the_batch_size(tiny: RetrievalData) -> None:
    attacks = [ATTACKS.get(name)().resolve(THREAT) for name in ("es", "top1")]
    attacks.append(dataclasses.replace(ATTACKS.get("radius")(), steps=2).resolve(THREAT))
    values: list[Any] = []
    for batch_size in (5, 64):
        with measured(tiny, EmbeddingModel(Noise(), "N"), batch_size=batch_size, eot=2) as found:
            torch.manual_seed(batch_size)  # nor on what was drawn before
            every = [found.benign(), *(found.attack(a, 0, a.card.name, 35) for a in attacks)]
            values.append([one.outcomes for one in every])
    for a, b in zip(*values, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    top1 = values[0][2]["Top1"]
    assert set(top1[~np.isnan(top1)]) <= {0, 50, 100}


def test_recalls_are_means_over_draws_and_not_those_of_the_mean_embedding(
    tiny: RetrievalData,
) -> None:
    attack = ATTACKS.get("es")().resolve(dataclasses.replace(THREAT, eps=0.0))
    with measured(tiny, EmbeddingModel(Noise(), "N"), eot=4) as found:
        one = found.attack(attack, 0, "es", recalls=True)
        outside = found.moved(columns("External"), found.images(found.index), found.index)
    right = one.outcomes["ES:R"]
    for values in (
        *(one.outcomes[name] for name in ("ES:R@1", "ES:R@1 clean")),
        outside["External:R@1"].numpy(),
    ):
        assert set(values) <= {0, 25, 50, 75, 100}
        assert ((values > 0) & (values < 100)).any()
        assert values.mean() == pytest.approx(right.mean(), abs=8)
    assert one.outcomes["ES:D clean"].mean() == pytest.approx(one.outcomes["ES:D"].mean(), rel=0.2)


def test_of_large_images_expectations_do_not_depend_on_the_batch_size() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 1, LARGE, LARGE), dtype=np.uint8)
    split = Split(images, np.repeat(np.arange(8), 5))
    torch.manual_seed(0)
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(LARGE**2, 8))
    noisy = Wrapped(backbone, before=lambda x: x + 0.3 * torch.randn_like(x))
    attack = ATTACKS.get("tma")().resolve(dataclasses.replace(THREAT, steps=16))
    values = []
    for batch_size in (None, 1, 64):
        model = EmbeddingModel(noisy, "N")
        with measured(RetrievalData(split, split), model, eot=2, batch_size=batch_size) as found:
            values.append(found.attack(attack, 0, "tma").outcomes["TMA"])
    np.testing.assert_array_equal(values[0], values[1])
    np.testing.assert_array_equal(values[0], values[2])


@pytest.mark.parametrize("restarts", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("luck", [True, False])
def test_a_black_box_is_told_from_luck_over_draws(
    tiny: RetrievalData, luck: bool, restarts: int
) -> None:
    """Square keeps an image of lower R@1, which no image has of a network that sees noise alone."""

    def seen(x: torch.Tensor) -> torch.Tensor:
        return torch.rand_like(x) if luck else x.detach() + 0.05 * torch.randn_like(x)

    model = EmbeddingModel(Wrapped(backbone(), before=seen), "N")
    attack = dataclasses.replace(ATTACKS.get("top1")(), restarts=restarts)
    with measured(tiny, model, eot=8) as found:
        one = found.attack(attack.resolve(dataclasses.replace(THREAT, eps=0.3)), 0, "top1")
    assert one.metrics["Top1:Square"].value > 2
    raised = {flag["name"]: flag["says"] for flag in one.findings["flags"]}
    assert ("black box" in raised) == (not luck)
    share = one.findings["square_by_other_draws"]
    assert luck or raised["black box"].startswith(f"a black box broke {share:.1f}% of the queries")


class FaintNoise(torch.nn.Module):
    """So little noise that a query is broken in all draws or in none."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_network().backbone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        e: torch.Tensor = self.inner(x + 1e-3 * torch.randn_like(x))
        return e


@pytest.mark.parametrize(
    "text",
    [
        "margin:steps=6",
        pytest.param("radius:steps=3", marks=pytest.mark.slow),
        "dlr:optimizer=pgd,steps=6",
    ],
)
def test_a_query_may_be_broken_in_all_of_ten_draws(tiny: RetrievalData, text: str) -> None:
    """The tenth part of the lowest number, ten times, is below it by rounding."""
    attack = spec.parse(text, ATTACKS).resolve(dataclasses.replace(THREAT, suite="auto", eps=0.3))
    with measured(tiny, EmbeddingModel(FaintNoise(), "N"), eot=10) as found:
        one = found.attack(attack, 0, text, queries=12)
    column = attack.columns[0].name
    assert one.metrics[column].value < one.findings["clean"][column]


@pytest.mark.parametrize("draws", [10, 18, 31])
def test_a_mean_over_draws_is_not_below_the_least(draws: int) -> None:
    lowest = torch.finfo(torch.float32).min
    found = torch.full((draws, 3), lowest)
    found[0, 1], found[0, 2] = 1.0, -torch.inf
    broken, mixed, infinite = mean_over_draws(found).tolist()
    assert broken == lowest
    assert mixed == pytest.approx(lowest * (draws - 1) / draws)
    assert infinite == -np.inf


def test_a_network_without_randomness_has_its_number_as_expectation(tiny: RetrievalData) -> None:
    attack = ATTACKS.get("ca+")().resolve(THREAT)
    values = []
    for eot in (1, 3):
        with measured(tiny, EmbeddingModel(backbone(), "N"), eot=eot) as found:
            values.append((found.benign().metrics, found.attack(attack, 0, "ca+").metrics["CA+"]))
    assert values[0][0]["mAP"].value == pytest.approx(values[1][0]["mAP"].value, abs=0.2)
    assert values[0][1].value == pytest.approx(values[1][1].value, abs=0.5)


def test_randomness_that_no_seed_repeats_is_refused(tiny: RetrievalData) -> None:
    own = torch.Generator().manual_seed(0)
    noisy = Wrapped(backbone(), before=lambda x: x + 0.1 * torch.randn(x.shape, generator=own))
    with (
        measured(tiny, EmbeddingModel(noisy, "N"), eot=2) as found,
        pytest.raises(CellError, match="no seed repeats"),
    ):
        found.benign()
