"""Attacks that state their loss only, against those whose gradient is written by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from dmlbench.attacks.base import ATTACKS, Attack, AutogradLoss, Gallery
from dmlbench.attacks.candidate import CandidateGoal, CandidateUp
from dmlbench.attacks.embedding_shift import MismatchGoal, TargetedMismatch
from dmlbench.attacks.engine.pgd import PGD
from dmlbench.common.errors import CellError
from dmlbench.compute.embedding import EmbeddingModel
from dmlbench.core.protocol import Threat
from dmlbench.metrics.distance import rowwise

THREAT = Threat(eps=0.1, alpha=0.03, steps=8)


@dataclass(frozen=True)
class Mismatch(AutogradLoss):
    """TMA: 1 - cos(e, target)."""

    hand: MismatchGoal

    def loss(self, e: torch.Tensor, step: int) -> torch.Tensor:
        return 1 - torch.nn.functional.cosine_similarity(e, self.hand.target, dim=1)

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.hand.outcome(e)


@dataclass(frozen=True)
class Candidate(AutogradLoss):
    """CA+: mean_q mean_x max(0, d(q, e) - d(q, x)), written out."""

    hand: CandidateGoal

    def loss(self, e: torch.Tensor, step: int) -> torch.Tensor:
        a = rowwise(self.hand.queries, e[:, None], self.hand.metric)
        hinge = (a[..., None] - self.hand.distances).relu()
        return (hinge.sum(2) / self.hand.others).mean(1)

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.hand.outcome(e)


class AutogradMismatch(TargetedMismatch):
    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> Any:
        return Mismatch(super().goal(gallery, index, seed))


class AutogradCandidate(CandidateUp):
    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> Any:
        return Candidate(super().goal(gallery, index, seed))


PAIRS = [(TargetedMismatch(), AutogradMismatch()), (CandidateUp(w=3), AutogradCandidate(w=3))]


@pytest.mark.parametrize("metric", ["N", "E", "C"])
@pytest.mark.parametrize(("hand", "auto"), PAIRS, ids=["tma", "ca+"])
def test_autograd_gives_the_gradient_that_is_written_by_hand(
    hand: Attack, auto: Attack, metric: Any
) -> None:
    x = torch.randn(60, 6)
    x = x if metric == "E" else torch.nn.functional.normalize(x, dim=1)
    gallery, index = Gallery(x, torch.arange(60) % 5, metric), torch.tensor([3, 0, 59, 17])
    e = x[index] + 0.3 * torch.randn(4, 6)
    with torch.no_grad():  # whatever the caller has switched off
        a, da = hand.goal(gallery, index, seed=2).value_and_grad(e, 0)
        b, db = auto.goal(gallery, index, seed=2).value_and_grad(e, 0)
    assert db.dtype == torch.float32
    assert da.norm(dim=1).min() > 0
    torch.testing.assert_close(a.float(), b, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(da, db, rtol=1e-6, atol=1e-6)
    assert not any(tensor.requires_grad for tensor in (b, db, e))


@pytest.mark.parametrize(("hand", "auto"), PAIRS, ids=["tma", "ca+"])
def test_an_attack_by_autograd_ends_as_the_one_by_hand(
    hand: Attack, auto: Attack, model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    index = torch.arange(40)
    a, b = (one.resolve(THREAT).run(model, images, index, gallery, seed=0) for one in (hand, auto))
    for column in hand.columns:
        found, expected = b.outcomes[column.name].mean(), a.outcomes[column.name].mean()
        assert found.item() == pytest.approx(expected.item(), abs=0.05)  # sign(0 +- rounding)
    assert b.perturbed.passes == a.perturbed.passes


def test_batches_and_the_active_set_change_no_bit(
    model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    index = torch.arange(40)
    attack = AutogradCandidate(eps=0.3, alpha=0.1).resolve(THREAT)

    def perturbed(batch: int, active_set: bool) -> tuple[torch.Tensor, int]:
        parts = [
            attack.run(model, images[i], i, gallery, seed=0, active_set=active_set).perturbed
            for i in torch.split(index, batch)
        ]
        return torch.cat([p.images for p in parts]), sum(p.passes for p in parts)

    reference, full = perturbed(40, active_set=False)
    for batch in (1, 16, 40):
        found, passes = perturbed(batch, active_set=True)
        assert torch.equal(found, reference)
        assert passes < full  # some candidates reach the top and leave


def test_a_loss_behind_a_hinge_leaves_at_once() -> None:
    @dataclass(frozen=True)
    class Hinge(AutogradLoss):
        offset: torch.Tensor

        def loss(self, e: torch.Tensor, step: int) -> torch.Tensor:
            return (e.square().sum(1) - self.offset).relu()

    clean = torch.rand(8, 1, 2, 2)
    goal = Hinge(torch.tensor([0.0] * 4 + [99.0] * 4))
    found = PGD(0.1, 0.1, 5).run(lambda x: x.flatten(1), clean, goal)
    assert torch.equal(found.images[4:], clean[4:])
    assert found.passes == 4 * 5 + 4


def test_a_loss_that_is_none_is_refused() -> None:
    @dataclass(frozen=True)
    class Wrong(AutogradLoss):
        how: str

        def loss(self, e: torch.Tensor, step: int) -> torch.Tensor:
            return {"mean": e.mean(), "detached": e.detach().sum(1)}[self.how]

    e = torch.rand(3, 4)
    with pytest.raises(CellError, match=r"Wrong\.loss must give 3 losses, got \(\)"):
        Wrong("mean").value_and_grad(e, 0)
    with pytest.raises(CellError, match=r"Wrong\.loss does not depend on e"):
        Wrong("detached").value_and_grad(e, 0)


def test_the_twins_are_not_registered() -> None:
    assert ATTACKS.get("tma") is TargetedMismatch
