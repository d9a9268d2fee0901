"""Attacks and defenses typed into a notebook, and classes of which Python is given an instance."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import dmlbench as dml
from dmlbench.attacks.base import ATTACKS
from dmlbench.common.errors import UserError
from dmlbench.core import sources
from dmlbench.core.reference import source_facts
from dmlbench.datasets.base import Dataset, RetrievalData
from tests.networks import own_network

pytestmark = pytest.mark.usefixtures("registries")

ATTACK = """
from dataclasses import dataclass
import torch
from dmlbench.attacks.base import ATTACKS, Attack, AutogradLoss, Column
from dmlbench.core.registry import Card

@dataclass(frozen=True)
class Towards(AutogradLoss):
    target: torch.Tensor
    def loss(self, e, step):
        return (e - self.target).square().sum(1)
    def outcome(self, e):
        return {"MINE": torch.full((len(e),), VALUE)}

@dataclass(frozen=True, kw_only=True)
class Mine(Attack):
    card = Card("mine", "as if it were typed into a notebook")
    columns = (Column("MINE", "", "higher"),)
    def goal(self, gallery, index, seed):
        return Towards(gallery.embeddings[index].roll(1, 0))
"""
DEFENSE = """
from dataclasses import dataclass
from dmlbench.core.registry import Card
from dmlbench.defenses.base import DEFENSES

@dataclass(frozen=True, kw_only=True)
class Own(DEFENSES.get("none")):
    card = Card("own", "as if it were typed into a notebook")
"""


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """The main module has no file, as in a notebook."""
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)


@pytest.fixture
def small(tiny: RetrievalData) -> Dataset:
    return dml.from_arrays(tiny.test.images, tiny.test.labels)


def typed(code: str, name: str, value: float = 1.0) -> type[Any]:
    """The class of that name, as a cell of a notebook with this code makes it."""
    cell: dict[str, Any] = {"__name__": "__main__", "VALUE": value}
    exec(code, cell)
    found = cell[name]
    assert isinstance(found, type)
    return found


@pytest.mark.usefixtures("notebook")
def test_a_typed_class_has_an_identity_that_no_other_class_has() -> None:
    first, second = (typed(ATTACK, "Mine") for _ in range(2))
    assert sources.source_file(first) is None
    with pytest.warns(UserWarning, match="^Mine is in no file: another session cannot know"):
        facts = source_facts(first(), "attack_source")
    with warnings.catch_warnings(action="error"):  # it is said once
        assert source_facts(first(steps=3), "attack_source") == facts
    with pytest.warns(UserWarning, match="is in no file"):
        other = source_facts(second(), "attack_source")
    assert len({*facts.values(), *other.values()}) == 2
    with warnings.catch_warnings(action="error"):
        assert source_facts(ATTACKS.get("es")(), "attack_source") == {}


@pytest.mark.usefixtures("notebook")
@pytest.mark.filterwarnings("ignore:.* is in no file")
def test_a_cell_of_a_notebook_may_be_changed_and_run_again(tmp_path: Path, small: Dataset) -> None:
    asked: dict[str, Any] = {"dataset": small, "results": tmp_path, "progress": False}
    network = own_network()
    for value in (1.0, 3.0):
        mine = typed(ATTACK, "Mine", value)
        for _ in range(2):
            report = dml.evaluate(network, attacks=mine(), **asked)
            assert report["MINE"].value == value
    assert len(list((tmp_path / "cells").glob("*.json"))) == 1 + 2  # clean, and a cell for each
    ATTACKS.register(typed(ATTACK, "Mine"))  # as a decorator in the cell would
    ATTACKS.register(typed(ATTACK, "Mine"))


@pytest.mark.usefixtures("notebook")
@pytest.mark.filterwarnings("ignore:.* is in no file")
def test_a_typed_defense_is_trained_anew_once_its_cell_is_run_again(
    tmp_path: Path, tiny: RetrievalData
) -> None:
    images = tiny.test.images, tiny.test.labels
    data = dml.from_arrays(*images, train=(255 - images[0], images[1] + 5))
    asked: dict[str, Any] = {
        "dataset": data, "model": "c2f2:dim=8", "recipe": "epochs=1,pairs=8", "results": tmp_path,
        "progress": False,
    }  # fmt: skip
    own = typed(DEFENSE, "Own")
    for trained, defense in ((1, own), (1, own), (2, typed(DEFENSE, "Own"))):
        dml.train(defense(), **asked)
        assert len(list((tmp_path / "models").iterdir())) == trained


@pytest.mark.usefixtures("notebook")
def test_worker_processes_cannot_load_a_typed_class(tmp_path: Path) -> None:
    mine, own = typed(ATTACK, "Mine"), typed(DEFENSE, "Own")
    words = "is in no file, so other processes cannot load it: put it into a file, or leave workers"
    for defense, attack, name in (("none", mine(), "Mine"), (own(), "es", "Own")):
        with (
            pytest.warns(UserWarning, match="is in no file: another session"),
            pytest.raises(UserError, match=f"^{name} {words}"),
        ):
            dml.run(defense, attack, results=tmp_path, workers=2, progress=False)


def test_an_instance_with_the_name_or_a_column_of_another_attack_is_refused(small: Dataset) -> None:
    es = ATTACKS.get("es")
    namesake = type("Namesake", (es,), {})
    named = f"{ATTACK}    columns = ATTACKS.get('tma').columns\n"
    for attack, words in (
        (namesake(), "^attack Namesake: attack 'es' is registered twice"),
        (typed(named, "Mine")(), "^attack Mine: its column 'TMA' is that of the attack 'tma'"),
    ):
        with pytest.raises(UserError, match=words):
            dml.evaluate(own_network(), attacks=["es", attack], dataset=small, progress=False)
