"""``optimizer=``: any goal by any optimizer, and identities as they were before it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dmlbench.attacks.base import ATTACKS, Attack, Gallery
from dmlbench.common.errors import UserError
from dmlbench.compute.embedding import EmbeddingModel
from dmlbench.core import spec
from dmlbench.core.protocol import Threat

THREAT = Threat(eps=0.2, alpha=0.05, steps=8)


def resolved(text: str, threat: Threat = THREAT) -> dict[str, Any]:
    return spec.values(spec.parse(text, ATTACKS).resolve(threat))


def test_a_suite_has_its_optimizer_and_a_key_changes_it() -> None:
    usual = {"eps": 0.2, "alpha": 0.05, "steps": 8, "restarts": 0, "suite": "strict"}
    assert resolved("es") == usual  # as it was before there were optimizers
    assert resolved("es:optimizer=pgd") == usual
    assert resolved("es:optimizer=apgd") == usual | {"alpha": 0.4, "optimizer": "apgd"}
    auto = usual | {"alpha": 0.4, "steps": 100, "suite": "auto"}
    assert resolved("es:suite=auto") == resolved("es:suite=auto,optimizer=apgd") == auto
    plain = auto | {"alpha": 0.05, "optimizer": "pgd"}
    assert resolved("es:suite=auto,optimizer=pgd") == plain
    assert resolved("es:optimizer=apgd,alpha=0.1,steps=1")["alpha"] == 0.1
    assert resolved("es:optimizer=apgd,eps=0.8")["alpha"] == 1  # it crosses the pixel range
    assert resolved("es:optimizer=apgd,eps=0")["alpha"] > 0


def test_none_is_spelt_default_where_auto_is_a_value() -> None:
    assert spec.parse("es:suite=default", ATTACKS) == spec.parse("es", ATTACKS)
    assert spec.parse("es:optimizer=auto", ATTACKS) == spec.parse("es", ATTACKS)
    assert spec.parse("es:suite=auto", ATTACKS).suite == "auto"


def test_an_unknown_optimizer_is_a_clear_error() -> None:
    with pytest.raises(UserError, match=r"did you mean 'apgd'.*must be one of pgd, apgd"):
        spec.parse("es:optimizer=agpd", ATTACKS)


@pytest.mark.parametrize(
    "text", ["ca+", "ca+:optimizer=apgd", "ca+:suite=auto,optimizer=pgd", "ca+:suite=auto"]
)
def test_spellings_of_resolved_attacks_mean_the_same(text: str) -> None:
    attack = spec.parse(text, ATTACKS).resolve(THREAT)
    assert spec.parse(spec.canonical(attack), ATTACKS) == attack
    assert attack.resolve(THREAT) == attack


@pytest.mark.parametrize("name", ["ca+", "qa-", "tma", "ltm"])
def test_any_goal_by_apgd_is_batch_independent(
    name: str, model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    index = torch.arange(40)

    def run(attack: Attack, rows: torch.Tensor, active_set: bool = True) -> torch.Tensor:
        found = attack.run(model, images[rows], rows, gallery, seed=0, active_set=active_set)
        return found.outcomes[attack.columns[0].name]

    attack = ATTACKS.get(name)(optimizer="apgd").resolve(THREAT)
    whole = run(attack, index)
    assert torch.equal(whole, run(attack, index, active_set=False))
    order = torch.randperm(40)
    parts = torch.cat([run(attack, rows) for rows in order.split(7)])
    assert torch.equal(parts, whole[order])
