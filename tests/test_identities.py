"""Identities stay what they were: stored cells and models are found by them alone."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from dmlbench.attacks.base import ATTACKS
from dmlbench.common.files import json_bytes
from dmlbench.common.hashing import identity
from dmlbench.compute.device import Compute
from dmlbench.core import spec
from dmlbench.core.protocol import ERS_ATTACKS
from dmlbench.datasets.base import DATASETS
from dmlbench.datasets.fashion import FashionMini
from dmlbench.defenses.base import DEFENSES
from dmlbench.metrics.names import BENIGN
from dmlbench.models.base import parse_model
from dmlbench.storage import checkpoint
from dmlbench.storage.store import Store
from dmlbench.sweep import plan
from dmlbench.sweep.requests import parse_all, parse_attacks, parse_recipe
from dmlbench.sweep.tasks import Combine
from dmlbench.sweep.weights import trained_weights

RESULTS = Path(__file__).parent.parent / "results"
MANIFESTS = sorted((RESULTS / "fashion" / "manifests").glob("*.json"))
FIXED = """
de33e4c3daa6410b 1b9982266cc5520a e20c9d394b90ae81 ba7f37390cc9e3f4 aa85849f36b159a2
8bfa445dca3e7215 783329c78b215c65 d91e10dfd812aa12 f7625224066ead26 e42db666e4d08d19
a81f7f7830da25fb e302d5a4b56d100b 338c1cf8d08d5870 8199caff8f51811f
"""


def test_planned_cells_have_the_ids_they_always_had() -> None:
    card, hm = FashionMini().protocol, spec.parse("hm:eta=4", DEFENSES)
    network = parse_model(card.model)
    (training,) = plan.plan(FashionMini(), "d" * 64, network, [hm], [3], card.recipe)
    names = (*ERS_ATTACKS, "es:restarts=5")
    attacks = plan.planned_attacks([spec.parse(n, ATTACKS) for n in names], card.threat, 50)
    weights = trained_weights(training, None, Store(Path("nowhere")), Compute())
    assert training.id == "8513e4d7f733a83d"
    assert [task.cell.id for task in plan.cells(weights, attacks, BENIGN)] == FIXED.split()


def test_a_version_may_be_that_of_one_metric_alone() -> None:
    """ES and what takes its loss have another version under E, CA- has one under N and E."""
    card, network = FashionMini().protocol, "c2f2:metric={}"
    attacks = plan.planned_attacks(
        [spec.parse(n, ATTACKS) for n in ("es", "ltm", "uap", "uap:by=es", "ca-")], card.threat
    )
    found = {}
    for metric in ("C", "N", "E"):
        (training,) = plan.plan(
            *(FashionMini(), "d" * 64, parse_model(network.format(metric))),
            *([spec.parse("none", DEFENSES)], [3], card.recipe),
        )
        weights = trained_weights(training, None, Store(Path("nowhere")), Compute())
        tasks = plan.measures(weights, attacks, BENIGN)[1:]
        found[metric] = [task.cell.facts["attack_version"] for task in tasks]
    assert found["C"] == [task.attack.card.version for task in tasks if task.attack]
    assert [n - c for n, c in zip(found["N"], found["C"], strict=True)] == [0, 0, 0, 0, 1]
    assert [e - n for e, n in zip(found["E"], found["N"], strict=True)] == [1, 0, 0, 1, 0]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_committed_manifests_name_their_training(path: Path) -> None:
    manifest = msgspec.json.decode(path.read_bytes(), type=checkpoint.Manifest)
    assert identity(manifest.training) == manifest.training_id == path.stem
    assert json_bytes(manifest.as_json()) == path.read_bytes()


@pytest.mark.parametrize("name", ["fashion", "fashion-4-epochs"])
def test_a_plan_of_the_committed_sweep_finds_the_committed_rows(name: str) -> None:
    """Every id of the CSV, with the same model, attack and column."""
    asked = yaml.safe_load((RESULTS / f"{name}.yaml").read_text())
    dataset = DATASETS.get(asked["dataset"])()
    recipe = ",".join(f"{key}={value}" for key, value in asked["recipe"].items())
    trainings = plan.plan(
        dataset,
        str(dataset.known_digest),
        parse_model(dataset.protocol.model),
        parse_all(tuple(asked["defense"]), DEFENSES),
        [asked["seed"]],
        parse_recipe(dataset, recipe),
    )
    chosen = parse_attacks(tuple(asked["attack"]), tuple(asked["suite"]))
    attacks = plan.planned_attacks(chosen, dataset.protocol.threat, asked["queries"])
    found: list[dict[str, Any]] = []
    for training in trainings:
        folder = RESULTS / "fashion" / "models" / training.id
        path = RESULTS / "fashion" / "manifests" / f"{training.id}.json"
        manifest = msgspec.json.decode(path.read_bytes(), type=checkpoint.Manifest)
        assert checkpoint.verified_manifest(folder, training.facts) in (None, manifest)
        weights = trained_weights(training, manifest, Store(RESULTS / "fashion"), Compute())
        for task in plan.cells(weights, attacks, BENIGN):
            cell = msgspec.to_builtins(task.cell)
            if name == "fashion" and isinstance(task, Combine):  # drawn before 26b8599
                cell["id"] = identity({k: v for k, v in cell["facts"].items() if k != "data"})
            for metric, column in cell["columns"].items():
                found.append({"cell": cell["id"], **cell["about"], "metric": metric, **column})
    texts = [{key: str(value) for key, value in row.items()} for row in found]
    with (RESULTS / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        committed = [{key: row[key] for key in texts[0]} for row in csv.DictReader(file)]

    def by_cell(row: dict[str, str]) -> tuple[str, str]:
        return row["cell"], row["metric"]

    assert sorted(texts, key=by_cell) == sorted(committed, key=by_cell)
