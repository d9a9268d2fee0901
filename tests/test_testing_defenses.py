"""The conformance suite finds each mistake of a defense by the check that is there for it."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from dmlbench import testing
from dmlbench.core.protocol import TrainingThreat
from dmlbench.defenses import act, ca_tride
from dmlbench.defenses.acap import AnchorPerplexing
from dmlbench.defenses.act import AntiCollapseTriplet, CollapseObjective
from dmlbench.defenses.base import Batch, Defense, StepOutput
from dmlbench.defenses.none import NoDefense
from tests.mistakes import changed, refused


class TestDefenses:
    def step(self, model: Any, batch: Batch, **other: Any) -> StepOutput:
        """A step of the undefended training, changed."""
        plain = NoDefense().resolve(TrainingThreat(eps=0.1, eta=2), "N").step(model, batch, {})
        return dataclasses.replace(plain, **other)

    @pytest.mark.parametrize(
        ("check", "words", "step"),
        [
            ("step", "no scalar loss", lambda t, m, c: t.step(m, c, loss=None)),
            ("step", "no gradient", lambda t, m, c: t.step(m, c, loss=torch.ones(()))),
            ("step", "eval mode", lambda t, m, c: (t.step(m, c), m.eval())[0]),
            ("step", "the hardness is 3", lambda t, m, c: t.step(m, c, hardness=torch.tensor(3))),
            ("step", "changes the weights", lambda t, m, c: _moved(t.step(m, c), m)),
            ("step", "leaves gradients", lambda t, m, c: _backward(t.step(m, c))),
            ("step", "in place", lambda t, m, c: (c.images.mul_(0.5), t.step(m, c))[1]),
            ("cost", "passes of 0", lambda t, m, c: t.step(m, c, passes=40)),
            ("cost", "0 adversarial passes", lambda t, m, c: t.step(m, c, full_passes=40)),
            ("randomness", "torch.randn", lambda t, m, c: _noisy(t, m, c)),
            ("learns", "Look at the sign of the loss", lambda t, m, c: _negated(t.step(m, c))),
        ],
    )
    def test_a_bad_step(self, check: str, words: str, step: Any) -> None:
        cls = changed(NoDefense, step=lambda _, model, batch, __: step(self, model, batch))
        refused(cls, check, words)

    def test_a_component_that_ends_the_process(self) -> None:
        ends = property(lambda _: sys.exit(0))
        refused(changed(NoDefense, label=ends), "label", "it raised SystemExit: 0")

    def test_a_label_that_is_missing(self) -> None:
        refused(changed(NoDefense, label=property(lambda _: "")), "label", "its label is ''")

    def test_a_cost_that_is_not_reported(self) -> None:
        cost = property(lambda _: 5)
        refused(changed(AntiCollapseTriplet, training_cost=cost), "cost", "return eta + 1")
        forgotten = property(lambda self: self.eta)  # the pass that updates the weights
        refused(changed(AntiCollapseTriplet, training_cost=forgotten), "cost", "return eta + 1")

    @pytest.mark.parametrize(
        ("slope", "cosine"),
        [(torch.neg, "-1.00"), (torch.zeros_like, "0.00"), (torch.ones_like, "")],
    )
    def test_a_gradient_that_is_not_that_of_the_objective(self, slope: Any, cosine: str) -> None:
        """Written by hand, it may have the wrong sign, or say nothing; its scale does not count."""

        @dataclass(frozen=True)
        class Wrong(CollapseObjective):
            def value_and_grad(
                self, e: torch.Tensor, step: int
            ) -> tuple[torch.Tensor, torch.Tensor]:
                value, gradient = super().value_and_grad(e, step)
                return value, slope(gradient)

        def step(self: Any, model: Any, batch: Batch, state: Any) -> StepOutput:
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(act, "CollapseObjective", Wrong)
                return AntiCollapseTriplet.step(self, model, batch, state)

        refused(changed(AntiCollapseTriplet, step=step), "perturbs", f"have a cosine of {cosine}")

    @pytest.mark.parametrize(
        "objective",
        ["CandidatePerturbation", pytest.param("AnchorPerturbation", marks=pytest.mark.slow)],
    )
    def test_a_gradient_of_an_adversary_that_begins_late(
        self, objective: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """CA-TRIDE perturbs nothing in the first epoch, and then candidates and anchors in turn."""
        right = getattr(ca_tride, objective)

        @dataclass(frozen=True)
        class Wrong(right):
            def value_and_grad(
                self, e: torch.Tensor, step: int
            ) -> tuple[torch.Tensor, torch.Tensor]:
                value, gradient = super().value_and_grad(e, step)
                return value, -gradient

        monkeypatch.setattr(ca_tride, objective, Wrong)
        refused(ca_tride.CollapseAwareTripletDecoupling, "perturbs", "have a cosine of -1.00")

    def test_a_single_step_of_pgd_is_checked_too(self) -> None:
        found = {one.check: one for one in testing.check(AnchorPerplexing(eta=1))}
        assert found["perturbs"].passed

    def test_a_loss_of_the_clean_images(self) -> None:
        """PGD runs, and its images are thrown away."""

        def step(self: Any, model: Any, batch: Batch, state: Any) -> StepOutput:
            perturb = self.perturb

            def forgotten(model: Any, images: Any, objective: Any) -> Any:
                return dataclasses.replace(perturb(model, images, objective), images=images)

            object.__setattr__(self, "perturb", forgotten)
            try:
                return AntiCollapseTriplet.step(self, model, batch, state)
            finally:
                object.__delattr__(self, "perturb")

        refused(changed(AntiCollapseTriplet, step=step), "perturbs", "embed perturbed.images")

    def test_a_state_outside_the_state(self) -> None:
        seen: list[int] = []

        def step(_: Defense, model: Any, batch: Batch, state: Any) -> StepOutput:
            seen.append(1)
            found = self.step(model, batch)
            assert found.loss is not None
            return dataclasses.replace(found, loss=found.loss * len(seen))

        refused(changed(NoDefense, step=step), "randomness", "an earlier run left behind")

    def test_a_state_that_is_lost(self) -> None:
        def step(defense: Defense, model: Any, batch: Batch, state: Any) -> StepOutput:
            seen = vars(defense).setdefault("seen", [])  # a new run has a new defense
            seen.append(1)
            found = self.step(model, batch)
            assert found.loss is not None
            return dataclasses.replace(found, loss=found.loss * len(seen))

        refused(changed(NoDefense, step=step), "resumes", "keep what must survive")

    def test_a_state_that_is_no_tensor(self) -> None:
        def step(_: Defense, model: Any, batch: Batch, state: Any) -> StepOutput:
            state["n"] = 3
            return self.step(model, batch)

        refused(changed(NoDefense, step=step), "resumes", "is no tensor")


def _moved(step: StepOutput, model: nn.Module) -> StepOutput:
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    return step


def _backward(step: StepOutput) -> StepOutput:
    assert step.loss is not None
    step.loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    return step


def _noisy(case: TestDefenses, model: nn.Module, batch: Batch) -> StepOutput:
    noise = torch.randn(())
    return case.step(model, batch, hardness=0 * noise)


def _negated(step: StepOutput) -> StepOutput:
    assert step.loss is not None
    return dataclasses.replace(step, loss=-step.loss)
