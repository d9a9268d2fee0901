"""The conformance suite catches what it should: each mistake by the check that is there for it.

``test_outside.py`` does the same for attacks, through the command line.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dmlbench import testing
from dmlbench.attacks.base import Attack
from dmlbench.attacks.candidate import CandidateUp
from dmlbench.core.protocol import Recipe, Threat, TrainingThreat
from dmlbench.core.registry import Card, Component
from dmlbench.core.spec import parameter
from dmlbench.datasets.base import Answers, Dataset, DatasetCard, Figures, RetrievalData, Split
from dmlbench.defenses import act, ca_tride
from dmlbench.defenses.acap import AnchorPerplexing
from dmlbench.defenses.act import AntiCollapseTriplet, CollapseObjective
from dmlbench.defenses.base import Batch, Defense, StepOutput
from dmlbench.defenses.none import NoDefense
from dmlbench.models.base import Model, parse_model
from dmlbench.testing.randomness import states


def refused(component: Any, check: str, words: str) -> None:
    """``check`` fails with those words in its reason."""
    with pytest.raises(testing.ConformanceError) as caught:
        testing.check(component)
    found = {finding.check: finding for finding in caught.value.findings}
    assert found[check].passed is False, str(caught.value)
    assert words in found[check].reason
    assert words in str(caught.value)
    reason = found[check].reason
    assert len(reason) > 30
    assert "\n" not in reason


def changed(base: type[Any], **members: Any) -> type[Any]:
    """A subclass of ``base`` as a plugin would write it."""
    made = type("Changed", (base,), {"__module__": __name__, **members})
    return dataclass(frozen=True, kw_only=True)(made)


class TestCards:
    @pytest.mark.parametrize(
        ("card", "words"),
        [
            (Card("Act", "a defense"), "lower-case"),
            (Card("a b", "a defense"), "lower-case"),
            (Card("a", ""), "no summary"),
            (Card("a", "A defense."), "without a full stop"),
            (Card("a", "a defense", version=0), "version is 0"),
        ],
    )
    def test_a_bad_card(self, card: Card, words: str) -> None:
        refused(changed(NoDefense, card=card), "card", words)

    def test_a_parameter_without_help(self) -> None:
        members = {"__annotations__": {"x": "int"}, "x": parameter(1, "")}
        refused(changed(NoDefense, **members), "parameters", "x has no help")

    def test_a_default_outside_its_bounds(self) -> None:
        members = {"__annotations__": {"x": "int"}, "x": parameter(0, "x", at_least=1)}
        refused(changed(NoDefense, **members), "parameters", "must be int >= 1, got 0")

    def test_a_forgotten_decorator(self) -> None:
        members = {"__module__": __name__, "x": parameter(1, "x")}
        forgotten = type("Forgotten", (NoDefense,), members)
        refused(forgotten, "parameters", "no dataclass")

    def test_no_component_at_all(self) -> None:
        with pytest.raises(TypeError, match="no attack, defense"):
            testing.check(Component)


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


CARD = DatasetCard(
    "made",
    "made images",
    model="c2f2:dim=8",
    recipe=Recipe(epochs=1, pairs=8),
    threat=Threat(eps=0.1, alpha=0.05, steps=2),
    training_threat=TrainingThreat(eps=0.1, eta=2),
)


@dataclass(frozen=True, kw_only=True)
class Made(Dataset):
    card = CARD

    def load(self, data_root: Path | None, cache: object = None) -> RetrievalData:
        return testing.tiny_data()


def _with(**changes: Any) -> Any:
    return lambda *_: dataclasses.replace(testing.tiny_data(), **changes)


TRAIN, TEST, OTHER = testing.tiny_data().train, testing.tiny_data().test, testing.make_split(3)


class TestDatasets:
    def test_a_sound_one(self) -> None:
        assert all(finding.passed for finding in testing.check(Made))
        # the same images in both splits, and the note says so
        said = dataclasses.replace(CARD, note="a few images are in both splits")
        testing.check_dataset(changed(Made, card=said, load=_with(test=TRAIN)))

    @pytest.mark.parametrize("form", ["classes", "lists"])
    def test_sound_ones_with_a_gallery_apart(self, form: str) -> None:
        """A distractor, a query without an answer, and an image that is in both but hidden."""
        images = np.concatenate([testing.make_split(3).images, TEST.images[:1]])
        labels = np.concatenate([testing.make_split(3).labels, [-1]])
        gallery = Split(images, labels, sources=np.arange(41) // 40 - 1)
        queries = dataclasses.replace(TEST, sources=np.arange(40) * 0 - 1)
        queries.sources[0] = 0
        listed = None
        if form == "lists":
            none = np.full(40, -1)
            queries, gallery = Split(TEST.images, none), Split(images, np.full(41, -1))
            listed = Answers(((), *[(i,) for i in range(1, 40)]), ((40,), *[()] * 39))
        nothing = Split(TRAIN.images[:0], TRAIN.labels[:0])
        for train in (TRAIN, nothing):
            load = _with(train=train, test=queries, gallery=gallery, answers=listed)
            assert all(finding.passed for finding in testing.check(changed(Made, load=load)))

    @pytest.mark.parametrize(
        ("check", "words", "changes"),
        [
            (
                "answers",
                "no query has an answer",
                {"gallery": Split(OTHER.images, OTHER.labels + 9)},
            ),
            ("answers", "40 queries find themselves", {"gallery": TEST}),
            ("answers", "no gallery image", {"gallery": Split(OTHER.images[:0], OTHER.labels[:0])}),
            (
                "answers",
                "one of queries and gallery has sources",
                {"gallery": dataclasses.replace(OTHER, sources=OTHER.labels)},
            ),
            ("answers", "1 lists of positives", {"answers": Answers(((0,),), ((),) * 40)}),
            ("answers", "not below 40", {"answers": Answers(((40,),) * 40, ((),) * 40)}),
            (
                "form",
                "gallery label is below -1",
                {"gallery": Split(OTHER.images, OTHER.labels - 2)},
            ),
            ("form", "make them alike", {"gallery": testing.make_split(3, size=16)}),
        ],
    )
    def test_a_bad_gallery(self, check: str, words: str, changes: dict[str, Any]) -> None:
        refused(changed(Made, load=_with(**{"gallery": OTHER} | changes)), check, words)

    def test_a_wrong_figure_of_the_gallery(self) -> None:
        card = dataclasses.replace(CARD, gallery=Figures(9, 5))
        said = "the gallery split has 9 images"
        refused(changed(Made, card=card, load=_with(gallery=OTHER)), "declared", said)

    @pytest.mark.parametrize(
        ("check", "words", "load"),
        [
            ("load", "return RetrievalData", lambda *_: (TRAIN, TEST)),
            ("load", "division by zero", lambda *_: 1 / 0),
            ("form", "square", _with(train=Split(TRAIN.images[:, :, :4], TRAIN.labels))),
            ("form", "int64", _with(test=Split(TEST.images, TEST.labels.astype(np.int32)))),
            ("form", "is negative", _with(test=Split(TEST.images, TEST.labels - 1))),
            ("form", "make them alike", _with(test=testing.make_split(2, size=16))),
            ("form", "fit into them", lambda *_: RetrievalData(TRAIN, TEST, crop=16)),
            ("classes", "0 classes of two", _with(test=testing.make_split(2, each=1))),
            ("classes", "batch of 8 pairs", _with(train=testing.make_split(1, 2, 2))),
            ("disjoint", "40 images are in both splits", _with(train=TEST)),
        ],
    )
    def test_bad_content(self, check: str, words: str, load: Any) -> None:
        refused(changed(Made, load=load), check, words)

    @pytest.mark.parametrize("draw", [np.random.random, random.random])
    def test_content_that_is_drawn(self, draw: Any) -> None:
        def load(*_: Any) -> RetrievalData:
            return RetrievalData(testing.make_split(int(1e6 * draw())), TEST)

        refused(changed(Made, load=load), "repeatable", "global random generator")

    def test_content_of_another_order(self) -> None:
        count = iter(range(9))
        load = lambda *_: RetrievalData(testing.make_split(next(count), each=16), TEST)  # noqa: E731
        refused(changed(Made, load=load), "repeatable", "two loads give different images")

    def test_a_wrong_digest(self) -> None:
        refused(changed(Made, known_digest="0" * 64), "declared", "write the one that was found")

    @pytest.mark.parametrize(
        ("check", "words", "changes"),
        [
            ("declared", "train split has 9 images", {"train": Figures(9, 5)}),
            ("protocol", "lengths in a pixel range", {"threat": Threat(8, 1, 2)}),
            ("protocol", "eta 0", {"training_threat": TrainingThreat(eps=0.1, eta=0)}),
            ("protocol", "unknown model", {"model": "nonsense"}),
            ("protocol", "source is empty", {"source": ""}),
            ("network", "at least 16x16", {"model": "lenet"}),
        ],
    )
    def test_a_bad_card(self, check: str, words: str, changes: dict[str, Any]) -> None:
        refused(changed(Made, card=dataclasses.replace(CARD, **changes)), check, words)

    def test_files_that_are_not_there_leave_the_rest_out(self) -> None:
        found = testing.check(changed(Made, locate=lambda *_: None))
        assert [f.check for f in found if f.passed] == ["card", "parameters", "protocol"]
        assert {f.passed for f in found} == {True, None}


class Flat(nn.Module):
    """One layer, with a mistake."""

    def __init__(self, mistake: str) -> None:
        super().__init__()
        self.mistake = mistake
        self.layer = nn.Linear(28 * 28, 6)
        if mistake == "same weights":
            nn.init.ones_(self.layer.weight)
        if mistake == "hidden weights":
            self.hidden = torch.rand(6)
        if mistake == "unseeded weights":
            nn.init.constant_(self.layer.bias, np.random.default_rng().random())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.flatten(1)
        match self.mistake:
            case "noise":
                x = x + torch.rand_like(x)
            case "batch statistics":
                x = x - x.mean(0)
            case "in place":
                images.mul_(0.5)
            case "rounding":
                x = (8 * x).round() / 8
            case "blind":
                x = 0 * x
            case "detached":
                return self.layer(x).detach() + 1e-3 * x[:, :6]
            case "outside of PyTorch":
                return torch.from_numpy(x.detach().numpy()[:, :6].copy())
            case "double":
                return self.layer(x).double()
            case "nan":
                return self.layer(x) / 0
            case "hidden weights":
                return self.layer(x) * self.hidden
            case "same weights":
                return self.layer(x) * 0 + x[:, :6] + self.layer.weight.mean()
            case "dropout":
                x = nn.functional.dropout(x, training=self.training)
        found: torch.Tensor = self.layer(x)
        return found


class TestModels:
    @pytest.mark.parametrize(
        ("mistake", "check", "words"),
        [
            ("noise", "deterministic", "global random generator"),
            ("batch statistics", "alone", "depend on the batch size"),
            ("in place", "untouched", "work on a copy"),
            ("rounding", "gradient", "gradient in the image is zero"),
            ("blind", "embeddings", "does not look at its input"),
            ("detached", "trainable", "no parameter gets a gradient"),
            ("outside of PyTorch", "gradient", "run attacks that need no gradient"),
            ("double", "embeddings", "must be float32"),
            ("nan", "embeddings", "not finite"),
            ("hidden weights", "stored", "state dict"),
            ("same weights", "seeded", "two seeds give the same weights"),
            ("unseeded weights", "seeded", "could not be repeated"),
        ],
    )
    def test_a_bad_network(self, mistake: str, check: str, words: str) -> None:
        refused(parse_model(f"{__name__}:Flat:mistake='{mistake}'"), check, words)

    def test_a_network_that_says_it_is_steady(self) -> None:
        backbone = lambda *_: Flat("dropout")  # noqa: E731
        members = {
            "card": Card("flat", "one layer"),
            "backbone": backbone,
            "same_in_training": True,
        }
        refused(changed(Model, **members), "same_in_training", "mined on the wrong ones")

    def test_sound_ones(self) -> None:
        testing.check(parse_model(f"{__name__}:Flat:mistake=none"))
        testing.check(parse_model(f"{__name__}:Flat:mistake=dropout,metric=E"))

    @pytest.mark.parametrize(
        ("network", "check", "words"),
        [
            ("torch.nn:Linear:in_features=3,out_features=2", "build", "cannot embed"),
            ("torch.nn:Flatten", "trainable", ""),
        ],
    )
    def test_one_that_is_no_embedding_network(self, network: str, check: str, words: str) -> None:
        refused(parse_model(network), check, words)


def test_a_check_leaves_the_generators_as_they_were() -> None:
    before = states()
    testing.check(CandidateUp(steps=3))
    testing.check(NoDefense)
    testing.check(Made)
    testing.check(parse_model("c2f2:dim=4"))
    assert states() == before


def test_findings_can_be_printed() -> None:
    found = testing.check_attack(CandidateUp)
    assert str(found[0]) == "ok       card"
    assert issubclass(testing.ConformanceError, AssertionError)
    assert issubclass(CandidateUp, Attack)
