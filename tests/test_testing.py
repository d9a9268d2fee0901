"""The conformance suite finds mistakes in cards and parameters, and leaves generators alone."""

from __future__ import annotations

import pytest

from dmlbench import testing
from dmlbench.attacks.base import Attack
from dmlbench.attacks.candidate import CandidateUp
from dmlbench.core.registry import Card, Component
from dmlbench.core.spec import parameter
from dmlbench.defenses.none import NoDefense
from dmlbench.models.base import parse_model
from dmlbench.testing.randomness import states
from tests.mistakes import Made, changed, refused


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
