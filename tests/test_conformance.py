"""The conformance suite over everything that is registered, third-party plugins included."""

from __future__ import annotations

import re

import pytest

from dmlbench import testing
from dmlbench.attacks.base import ATTACKS, Attack
from dmlbench.core.protocol import Threat
from dmlbench.core.registry import Component
from dmlbench.datasets.base import DATASETS
from dmlbench.defenses.base import DEFENSES
from dmlbench.models.base import MODELS
from tests.every_attack import EVERY

QUICK = ("c2f2", "lenet")  # the ImageNet networks take a minute
LONG = (
    *("certified", "dlr", "knn", "margin", "nes", "oa", "oa-list", "qair", "radius", "shift"),
    *("sp-qa+", "sp-qa-", "square", "top1", "fna", "odfa", "uap", "fashion"),
    *("ca-", "qa+", "qa-", "gtt", "ltm"),
    *("acap", "amd", "ca-tride", "goat", "rest", "ses", "tbc"),
)  # run with -m slow
NETWORKS = [
    pytest.param(cls, marks=() if cls.card.name in QUICK else pytest.mark.slow) for cls in MODELS
]
COMPONENTS = [
    pytest.param(cls, marks=pytest.mark.slow if cls.card.name in LONG else ())
    for cls in (*map(type, EVERY.values()), *DEFENSES, *DATASETS)
]
CITED = [*ATTACKS, *DEFENSES, *MODELS]


def name(cls: type[Component]) -> str:
    return cls.card.name


@pytest.mark.parametrize("cls", [*COMPONENTS, *NETWORKS], ids=name)
def test_what_is_registered_conforms(cls: type[Component]) -> None:
    found = testing.check(EVERY.get(cls.card.name, cls))
    left_out = [finding.check for finding in found if finding.passed is None]
    assert not left_out or cls in list(DATASETS)  # files that are not on this machine


@pytest.mark.slow
def test_the_loss_of_a_universal_perturbation_without_labels_conforms() -> None:
    assert all(one.passed for one in testing.check(ATTACKS.get("uap")(by="pair")))


@pytest.mark.parametrize(
    "attack",
    [
        *("es", "sp-qa+"),
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("ca-", "gtm", "gtt", "ltm", "fna")),
    ],
)
def test_the_definitions_of_the_published_code_conform(attack: str) -> None:
    found = testing.check(ATTACKS.get(attack)(suite="ers"))
    assert [finding.check for finding in found if finding.passed is None] == ["own entry"]


@pytest.mark.parametrize("cls", CITED, ids=name)
def test_built_in_methods_cite_a_paper(cls: type[Component]) -> None:
    assert cls.card.paper is not None
    assert cls.card.paper.key in cls.card.paper.bibtex


@pytest.mark.parametrize("cls", [*map(type, EVERY.values())], ids=name)
def test_an_attack_says_what_auto_stands_for_in_it_alone(cls: type[Attack]) -> None:
    own = set()
    for suite in ("strict", "ers", "auto"):
        threat = Threat(eps=0.1, alpha=0.01, steps=8, suite=suite)
        usual, resolved = (ATTACKS.get(one)().resolve(threat) for one in ("margin", cls.card.name))
        for key in ("eps", "alpha", "steps", "optimizer"):
            value = getattr(resolved, key)
            if value not in (None, getattr(usual, key)):  # None: no key of this attack, or usual
                own.add(key)
    assert own == set(re.findall(r"(\w+)=", cls.auto))
