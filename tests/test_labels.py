"""The name of a model of the user's own: one for its cells, and warnings of others under it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import dmlbench as dml
from dmlbench.compute.device import Compute
from dmlbench.datasets.arrays import from_arrays
from dmlbench.datasets.base import Dataset, RetrievalData
from dmlbench.datasets.fashion import FashionMini
from dmlbench.models.base import parse_model
from dmlbench.models.small import C2F2
from dmlbench.storage.store import Store
from dmlbench.sweep.labels import in_its_row
from dmlbench.sweep.session import Session
from dmlbench.sweep.tasks import Weights
from tests import trees
from tests.cells import cell, with_facts
from tests.networks import FEW, own_network
from tests.reporters import Silent


def test_stored_cells_are_renamed_to_another_label_or_training_seed(
    net: nn.Module, small: Dataset, tmp_path: Path
) -> None:
    """Cells under two names would be two models in tables, each with half of the columns."""
    how: dict[str, Any] = {"results": tmp_path, "progress": False}
    attacks = ["es", "ltm", "gtm"]  # with a score, Robust R@1
    for _ in range(2):
        dml.evaluate(net, small, attacks=attacks, label="B", **how)
    again = dml.evaluate(net, small, attacks=attacks, label="A", training_seed=2, seed=0, **how)
    dml.evaluate(net, small, attacks="es", **how)  # label and seed are those stored
    every = dml.load_results(tmp_path).records
    assert {(one["label"], one["seed"]) for one in every} == {("A", 2)}
    assert "Robust R@1" in {one["metric"] for one in every}
    assert {one["value"] for one in again.records} <= {one["value"] for one in every}
    with pytest.raises(dml.UserError, match="has a control character"):
        dml.evaluate(net, small, attacks=FEW[0], label="\x1b", progress=False)


def test_an_attack_with_the_seed_of_the_training_has_a_plain_name(
    net: nn.Module, small: Dataset, tmp_path: Path
) -> None:
    """Also if the training got that seed afterwards."""
    how: dict[str, Any] = {"results": tmp_path, "progress": False}
    attacks = ["es", "ltm", "gtm"]
    dml.evaluate(net, small, attacks=attacks, seed=1, **how)
    for training_seed, end in ((0, " (attack_seed=1)"), (1, ""), (2, " (attack_seed=1)")):
        found = dml.evaluate(
            net, small, attacks=attacks, seed=1, training_seed=training_seed, **how
        )
        wide = pd.read_csv(tmp_path / "wide.csv").columns
        assert {f"GTM{end}", f"Robust R@1{end}"} <= {*wide}
        assert sum(name.startswith(("GTM", "Robust")) for name in wide) == 6
        assert found.failed == {}


def test_models_that_differ_in_the_training_seed_are_one_row(
    net: nn.Module, small: Dataset, tmp_path: Path
) -> None:
    """A mean over seeds; the targets of attacks are those of the training seed, as in a run."""
    how: dict[str, Any] = {"attacks": "es", "label": "mine", "results": tmp_path}
    found = [
        dml.evaluate(one, small, training_seed=seed, progress=False, **how)["ES:D"].value
        for seed, one in enumerate((net, own_network()))
    ]
    (row,) = pd.read_csv(tmp_path / "seeds.csv").to_dict("records")
    assert row["seeds"] == "0 1"
    assert float(row["ES:D"]) == pytest.approx(np.mean(found))
    with pytest.raises(dml.UserError, match="training_seed= is for a checkpoint or"):
        dml.evaluate("c2f2:dim=8", small, training_seed=1, progress=False, **how)


def test_a_network_keeps_its_name_where_none_is_given(
    net: nn.Module, small: Dataset, tmp_path: Path
) -> None:
    """Its numbers stay in one row, also if its file was renamed meanwhile."""
    how: dict[str, Any] = {"results": tmp_path / "results", "progress": False}
    first = dml.evaluate(net, small, attacks=FEW[0], label="mine", **how)
    again = dml.evaluate(net, small, attacks=FEW[1], **how)
    assert {one["label"] for one in (*first.records, *again.records)} == {"mine"}
    torch.save(C2F2(dim=8).build(1, 8).state_dict(), tmp_path / "a.pt")
    shutil.copy(tmp_path / "a.pt", tmp_path / "b.pt")
    for name in ("a", "b"):
        found = dml.evaluate(tmp_path / f"{name}.pt", small, network="c2f2:dim=8", **how)
        assert {one["label"] for one in found.records} == {"a"}


def test_a_copy_without_a_manifest_does_not_join_the_row_of_the_training(tmp_path: Path) -> None:
    """Its training is unknown, so the row of the trained model is another one."""
    store = Store(tmp_path)
    session = Session(FashionMini(), None, None, store, Compute("cpu"), Silent())
    trained, first, copied = (
        with_facts(cell(label=name, defense=name, **training), model={})
        for name, training in (
            ("HM", {}),
            ("first", {"resolved": "", "training_cost": 1}),
            ("copy", {"resolved": "", "training_cost": 1}),
        )
    )
    facts = {key: trained.facts[key] for key in ("checkpoint", "model")}
    weights = Weights(parse_model("c2f2"), None, facts, copied.about, 0)
    for stored, name in ((trained, "copy"), (first, "first")):
        store.put(stored, {"CA+": np.zeros(4)})
        assert in_its_row(session, weights, None).about.label == name


def test_another_network_under_a_name_that_nobody_gave_is_warned_of(
    net: nn.Module, small: Dataset, tmp_path: Path
) -> None:
    """Tables show only one of them."""
    how: dict[str, Any] = {"attacks": FEW[0], "results": tmp_path, "progress": False}
    other = own_network()
    for _ in range(2):
        dml.evaluate(net, small, **how)  # a warning is an error
    with pytest.warns(UserWarning, match="another network are stored under the name 'Sequential'"):
        dml.evaluate(other, small, **how)
    with (
        pytest.warns(UserWarning, match="results of another network are stored"),
        pytest.warns(UserWarning, match="of the same weights in another network, or in this one"),
    ):
        dml.evaluate(other, small, mean=[0.5], std=[0.2], **how)
    dml.evaluate(own_network(), small, label="third", **how)
    with pytest.warns(UserWarning, match="another network are stored under the name 'third'"):
        dml.evaluate(own_network(), small, label="third", **how)
    dml.evaluate(own_network(), small, metric="E", **how)  # another row


def test_other_images_under_one_spec_are_warned_of(
    net: nn.Module, tiny: RetrievalData, tmp_path: Path
) -> None:
    """Tables show the numbers of the images that were measured last."""
    how: dict[str, Any] = {"attacks": FEW[0], "results": tmp_path, "progress": False}
    sets = [from_arrays(tiny.test.images[n:], tiny.test.labels[n:]) for n in (0, 1)]
    dml.evaluate(net, sets[0], **how)
    with pytest.warns(UserWarning, match="on other images of arrays are stored, and tables show"):
        dml.evaluate(net, sets[1], **how)


def test_a_folder_that_was_moved_is_the_same_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its images are the same, and so are its numbers; scores are drawn of both halves."""
    monkeypatch.chdir(tmp_path)
    trees.folder(Path("photos"), classes=4, each=4)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())
    how: dict[str, Any] = {"results": tmp_path / "results", "label": "mine"}
    steps = ["es:steps=1,eps=1/255", "ltm:steps=1,eps=1/255", "gtm:steps=1,eps=1/255"]
    dml.evaluate(network, "folder:root=photos", attacks=steps[:2], **how)
    Path("photos").rename("moved")
    dml.evaluate(network, "folder:root=moved", attacks=steps, **how)
    assert "of folder:root=photos are now those of folder:root=moved: " in capsys.readouterr().err
    (row,) = pd.read_csv(tmp_path / "results" / "wide.csv").to_dict("records")
    assert row["dataset"] == "folder:root=moved"
    assert {"R@1", "ES:D (eps=1/255,steps=1)", "Robust R@1 (eps=1/255,steps=1)"} <= row.keys()
    store = Store(tmp_path / "results")
    outcomes = [one for one in store.cells() if one.outcomes]
    Path("moved").rename("again")
    (tmp_path / "results" / "cells" / f"{outcomes[0].id}.parquet").unlink()
    dml.evaluate(network, "folder:root=again", attacks=steps, **how)  # that one is measured again
    (row,) = pd.read_csv(tmp_path / "results" / "wide.csv").to_dict("records")
    assert row["dataset"] == "folder:root=again"
    assert all(store.outcomes(one.id) is not None for one in store.cells() if one.outcomes)


def test_a_model_that_was_trained_on_a_folder_keeps_its_recipe_where_that_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trees.folder(Path("photos"), classes=4, each=4)
    how: dict[str, Any] = {"results": tmp_path / "results", "progress": False}
    small_set, attack = "folder:root={},size=32", "es:steps=1"
    recipe = "epochs=1,pairs=4"
    dml.run("none", attack, dataset=small_set.format("photos"), model="lenet", recipe=recipe, **how)
    Path("photos").rename("moved")
    (model,) = (tmp_path / "results" / "models").iterdir()
    dml.evaluate(model, small_set.format("moved"), attacks=[attack, "ltm:steps=1"], **how)
    (row,) = pd.read_csv(tmp_path / "results" / "wide.csv").to_dict("records")
    assert row["recipe"] == "epochs=1,pairs=4"
    assert {"R@1", "ES:D (steps=1)", "LTM (steps=1)"} <= row.keys()


def test_networks_with_the_same_weights_have_a_name_each(small: Dataset, tmp_path: Path) -> None:
    """Two embedders without parameters, and one network behind two filters."""
    for name, rest in (("filters", own_network()), ("embedders", nn.Flatten())):
        attacks = ["es", "ltm", "gtm"]  # those that Robust R@1 is drawn from
        how: dict[str, Any] = {"attacks": attacks, "results": tmp_path / name, "progress": False}
        for layer in (nn.Tanh(), nn.ReLU(), nn.Tanh()):
            title = type(layer).__name__
            network = type(title, (nn.Sequential,), {"__module__": __name__})(layer, rest)
            found = dml.evaluate(network, small, **how)
            assert {one["label"] for one in found.records} == {title}
            assert "Robust R@1" in {one["metric"] for one in found.records}
