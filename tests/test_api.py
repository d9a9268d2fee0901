"""``import dmlbench``: measuring, training and loading from Python."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import dmlbench as dml
from dmlbench.api import runs
from dmlbench.api.evaluate import _is_path
from dmlbench.attacks.base import ATTACKS
from dmlbench.common.hashing import identity
from dmlbench.datasets.base import Dataset, RetrievalData
from dmlbench.models.attributes import Attributes
from dmlbench.models.base import parse_model
from dmlbench.models.module import module_model
from dmlbench.sweep.weights import initial_weights
from tests.faults import PATIENCE

Run = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).parent.parent
FEW = ["ca+:steps=2", "es:steps=2,restarts=2"]
OWN = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 16))
"""
FIFTEEN_LINES = """
import torch
from torch import nn

import dmlbench

torch.manual_seed(0)
net = nn.Sequential(nn.Flatten(), nn.Linear(784, 16))
report = dmlbench.evaluate(net, suite="strict", queries=30, progress=False)
print(report)
report.to_frame().to_csv("report.csv")
"""


@pytest.fixture(scope="module")
def small(tiny: RetrievalData) -> Dataset:
    train = (tiny.train.images, tiny.train.labels)
    return dml.from_arrays(tiny.test.images, tiny.test.labels, train=train, model="c2f2:dim=8")


@pytest.fixture
def net() -> nn.Module:
    return own_network()


def own_network() -> nn.Module:
    """A network for 8x8 images, whose weights are those of the generator."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8))


def test_import_is_quick_and_needs_no_torch() -> None:
    code = (
        "import sys, dmlbench; dmlbench.UserError; dir(dmlbench)\n"
        "assert not {'torch', 'numpy', 'pandas', 'click', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(dml.__all__) <= set(dir(dml))
    assert all(getattr(dml, name) is not None for name in dml.__all__)
    with pytest.raises(AttributeError, match="no attribute 'evaluat'"):
        dml.evaluat  # noqa: B018


def test_a_file_that_is_called_like_a_network_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("lenet", "mine", "hm"):
        (tmp_path / name).mkdir()
    assert not _is_path("lenet")
    assert not _is_path("mobilenet_v2:head=none,weights=w.pt")
    assert all(_is_path(name) for name in ("./lenet", Path("lenet"), "mine", "gone.pt"))
    with pytest.raises(dml.UserError, match="no model 'hm' in results"):
        dml.load_model("hm")


def test_an_own_network_in_a_few_lines_has_the_numbers_of_the_command_line(
    dmlbench: Run, tmp_path: Path
) -> None:
    (tmp_path / "mynet.py").write_text(OWN)
    (tmp_path / "own.py").write_text(FIFTEEN_LINES)
    names: dict[str, Any] = {}
    exec(OWN, names)
    state = names["make"]().state_dict()
    torch.save({f"backbone.{name}": value for name, value in state.items()}, tmp_path / "w.pt")
    one = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "own.py"]
    printed = subprocess.check_output(command, cwd=tmp_path, env=one, text=True)
    assert "ERS ↑" in printed
    assert not (tmp_path / "results").exists()
    done = dmlbench(
        *["attack", "--checkpoint", "w.pt", "--model", "mynet:make", "--dataset", "fashion-mini"],
        *["--suite", "strict", "--queries", "30"],
    )
    assert done.returncode == 0, done.stderr
    numbers = ["metric", "value", "low", "high", "n", "clean", "deciles"]
    theirs, ours = (
        pd.read_csv(tmp_path / name)[numbers].sort_values("metric", ignore_index=True)
        for name in ("results/results.csv", "report.csv")
    )
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


@pytest.mark.slow
def test_an_own_network_in_a_notebook(tmp_path: Path) -> None:
    jupytext, nbclient = pytest.importorskip("jupytext"), pytest.importorskip("nbclient")
    notebook = jupytext.read(ROOT / "tests" / "notebooks" / "own_model.py")
    place = {"metadata": {"path": tmp_path}}
    nbclient.NotebookClient(notebook, timeout=PATIENCE, resources=place).execute()
    _, _, shown, said = [cell.get("outputs") for cell in notebook.cells]
    (table,) = [out["data"] for out in shown if out["output_type"] == "execute_result"]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 16))
    report = dml.evaluate(net, suite="strict", queries=20, progress=False)
    assert table["text/html"] == report._repr_html_()
    assert said[0]["text"].strip() == repr(report["ERS"].value)


def test_a_report_is_text_a_frame_a_plot_and_single_numbers(net: nn.Module, small: Dataset) -> None:
    report = dml.evaluate(net, small, attacks=FEW, progress=False)
    frame = report.to_frame().set_index("metric")
    assert report["CA+ (steps=2)"].value == frame.loc["CA+", "value"]
    assert report["R@1"].n == 40
    assert "CA+ (steps=2) ↑" in report.summary() == str(report)
    assert "<pre>" in report._repr_html_()
    assert report.failed == {}
    assert report.plot() is not None
    with pytest.raises(KeyError, match="'TMA' was not measured; there are R@1"):
        report["TMA"]
    with pytest.raises(dml.UserError, match="kind must be one of"):
        report.plot("pie")
    with pytest.raises(dml.UserError, match="not enough"):
        report.plot("terms")
    (shift,) = [one for one in report.outcomes.values() if "ES:D" in one]
    assert shift["ES:D"].mean() == pytest.approx(report["ES:D (steps=2,restarts=2)"].value)


def test_the_module_is_left_as_it_was(net: nn.Module, small: Dataset) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    net[1].weight.requires_grad_(False)
    dml.evaluate(net, small, attacks="es:steps=1", progress=False)
    assert net.training
    assert [p.requires_grad for p in net.parameters()] == [False, True]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_normalisation_given_is_normalisation_inside(small: Dataset) -> None:
    class Normalising(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            embedded: torch.Tensor = self.inner((x - 0.5) / 0.25)
            return embedded

    inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
    attacks = "tma:steps=3"
    given = dml.evaluate(inner, small, attacks=attacks, mean=[0.5], std=[0.25], progress=False)
    inside = dml.evaluate(Normalising(inner), small, attacks=attacks, progress=False)
    without = dml.evaluate(inner, small, attacks=attacks, progress=False)
    name = "TMA (steps=3)"
    assert given[name] == inside[name] != without[name]


@pytest.mark.parametrize("metric", ["N", "E", "C"])
def test_each_metric(net: nn.Module, small: Dataset, metric: str) -> None:
    report = dml.evaluate(net, small, attacks="ca+", metric=metric, progress=False)  # type: ignore[arg-type]
    assert set(report.to_frame()["distance"]) == {metric}
    assert report["CA+"].value < 50


def test_stored_cells_are_taken_and_a_changed_weight_is_another_model(
    net: nn.Module, small: Dataset, tmp_path: Path
) -> None:
    first = dml.evaluate(net, small, attacks=FEW, results=tmp_path, progress=False)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    again = dml.evaluate(net, small, attacks=FEW, results=tmp_path, progress=False)
    assert again.records == first.records
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert dml.load_results(tmp_path).records == first.records
    assert len(dml.load_results(tmp_path / "results.csv").records) == len(first.records)
    with torch.no_grad():
        net[1].bias[0] += 1
    dml.evaluate(net, small, attacks=FEW, results=tmp_path, progress=False)
    assert len(list((tmp_path / "cells").glob("*.json"))) == 2 * len(times) / 2


def test_another_label_than_that_of_stored_cells_is_refused(
    net: nn.Module, small: Dataset, tmp_path: Path
) -> None:
    """Cells under two names would be two models in tables, each with half of the columns."""
    for _ in range(2):
        dml.evaluate(net, small, attacks=FEW[0], label="B", results=tmp_path, progress=False)
    with pytest.raises(dml.UserError, match=r"label 'A': cells .* are called 'B'"):
        dml.evaluate(net, small, attacks=FEW[0], label="A", results=tmp_path, progress=False)
    with pytest.raises(dml.UserError, match="has a control character"):
        dml.evaluate(net, small, attacks=FEW[0], label="\x1b", progress=False)
    assert {one["label"] for one in dml.load_results(tmp_path).records} == {"B"}


class Levels(nn.Module):
    """Round an image to some levels, as a defense by a transformation of the input does."""

    def __init__(self, inner: nn.Module, levels: int) -> None:
        super().__init__()
        self.inner = inner
        self.levels: Any = levels
        self.register_buffer("mask", torch.ones(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rounded = (x * self.levels).round() / self.levels * self.mask
        embedded: torch.Tensor = self.inner(rounded)
        return embedded


def halved(x: torch.Tensor) -> torch.Tensor:
    return x / 2


def quartered(x: torch.Tensor) -> torch.Tensor:
    return x / 4


CHANGES: dict[str, Callable[[Levels], object]] = {
    "a number": lambda m: setattr(m, "levels", 3),
    "a number of another type": lambda m: setattr(m, "levels", 2.0),
    "a tensor": lambda m: setattr(m, "levels", torch.tensor(2)),
    "a buffer that is not saved": lambda m: m.mask.fill_(0.5),
    "deep in a dict": lambda m: setattr(m, "keys", {"a": [(1, {"b": np.ones(2)})]}),
    "deep in another": lambda m: setattr(m, "keys", {"a": [(1, {"b": np.zeros(2)})]}),
    "a function": lambda m: setattr(m, "act", halved),
    "another function": lambda m: setattr(m, "act", quartered),
    "one of PyTorch's": lambda m: setattr(m, "act", nn.functional.relu),
    "a hook": lambda m: m.inner.register_forward_pre_hook(lambda m, x: None),
    "a layer's attribute": lambda m: setattr(m.inner[1], "scale", 2),
    "forward itself": lambda m: setattr(m, "forward", m.inner.forward),
}


def test_modules_that_differ_have_other_identities(net: nn.Module) -> None:
    """Also where weights and printed text are the same."""
    plain = module_model(net)
    assert plain.attributes == Attributes()
    assert plain.digest == plain.weights_digest  # as it was before attributes were looked at
    digests = [module_model(Levels(net, 2)).digest for _ in range(2)]
    assert digests[0] == digests[1]
    for name, change in CHANGES.items():
        changed = Levels(copy.deepcopy(net), 2)
        change(changed)
        held = module_model(changed)
        assert held.attributes.unknown == (["inner._forward_pre_hooks"] if name == "a hook" else [])
        digests.append(held.digest)
    assert len(set(digests)) == len(CHANGES)  # the hook is unknown, so it changes none
    compiled = [module_model(torch.compile(Levels(net, 2))) for _ in range(2)]
    assert compiled[0].digest == compiled[1].digest  # PyTorch gives each a number of its own
    held = module_model(nn.MultiheadAttention(4, 2))
    assert held.digest != held.weights_digest  # PyTorch prints no number of heads


def test_stored_cells_of_another_module_are_not_taken(
    net: nn.Module, small: Dataset, tmp_path: Path
) -> None:
    def measured(module: nn.Module, results: Path | None) -> list[float]:
        how: dict[str, Any] = {"attacks": "es:steps=2", "progress": False, "results": results}
        report = dml.evaluate(module, small, **how)
        return [report[name].value for name in ("mAP", "ES:D (steps=2)")]

    for levels in (1, 3):
        assert measured(Levels(net, levels), tmp_path) == measured(Levels(net, levels), None)
    for count in (1, 3):  # what a lambda computes cannot be compared
        module = Levels(net, 2)
        module.levels = count
        module.register_forward_pre_hook(lambda m, x, count=count: (x[0] * count,))
        fresh = measured(module, None)
        with pytest.warns(UserWarning, match="cells are not taken.*Levels.*_forward_pre_hooks"):
            assert measured(module, tmp_path) == fresh


def test_a_factory_that_changed_is_another_network(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights and classes may be the same."""
    monkeypatch.chdir(tmp_path)
    ids = []
    for levels in (2, 2, 3):
        Path("nets.py").write_text(
            OWN.replace("784", "64") + "from tests.test_api import Levels\ndef wrapped():\n"
            f"    return Levels(make(), {levels})\n"
        )
        weights = initial_weights(
            small, small.load(None), parse_model("nets.py:wrapped"), None, 0, "fp32"
        )
        ids.append(identity(weights.facts))
        assert weights.about.label == "none (as built)"
    assert ids[0] == ids[1] != ids[2]


def test_train_run_load_and_evaluate_agree(small: Dataset, tmp_path: Path) -> None:
    how = {"recipe": {"epochs": 1, "pairs": 8}, "results": tmp_path, "progress": False}
    trained = dml.train("none", small, **how)  # type: ignore[arg-type]
    assert not trained.training
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(trained(x).norm(dim=1), torch.ones(2))
    report = dml.run("hm:eta=2", "ca+", dataset=small, **how)  # type: ignore[arg-type]
    frame = report.to_frame().query("metric == 'CA+'").set_index("label")
    assert list(frame.index) == ["N/A[R]", "HM[S,g_LGA]&ICS"]
    with pytest.raises(dml.UserError, match="several models"):
        report["CA+"]
    (folder,) = [
        path.parent
        for path in tmp_path.glob("models/*/manifest.json")
        if json.loads(path.read_text())["defense"] == "none"
    ]
    sources = [folder, folder / "manifest.json", "none", "N/A[R]", frame.loc["N/A[R]"]]
    sources += ["none:margin=0.2", "none:sampler=random"]  # what it was trained with, spelt out
    for source in sources:
        loaded = dml.load_model(source, results=tmp_path)
        assert torch.equal(loaded(x), trained(x))
    for other in ("none:margin=0.3", "hm", "hm:eta=8", "none:margin"):
        with pytest.raises(dml.UserError, match=f"no model '{other}' in .*hm:eta=2, none"):
            dml.load_model(other, results=tmp_path)
    value = frame.loc["N/A[R]", "value"]
    for model in (trained, folder, folder / "checkpoint.safetensors"):
        assert dml.evaluate(model, small, attacks="ca+", progress=False)["CA+"].value == value


def test_a_spec_is_measured_with_the_weights_it_begins_with(small: Dataset) -> None:
    with pytest.warns(UserWarning, match="c2f2:dim=4: its weights are random, because no check"):
        found = [
            dml.evaluate("c2f2:dim=4", small, attacks="es:steps=1", seed=seed, progress=False)
            for seed in (0, 0, 1)
        ]
    assert found[0].to_frame()["model"].unique().tolist() == ["c2f2:dim=4"]
    values = [one["ES:D (steps=1)"].value for one in found]
    assert values[0] == values[1] != values[2]


def test_committed_rows_and_models_load() -> None:
    report = dml.load_results(ROOT / "results" / "fashion.csv")
    row = report.to_frame().query("metric == 'CA+' and defense == 'hm:eta=8'").iloc[0]
    model = dml.load_model(row, results=ROOT / "results", image_shape=(1, 28))
    assert model(torch.rand(3, 1, 28, 28)).shape == (3, 512)


def test_images_of_every_form(tiny: RetrievalData) -> None:
    images, labels = tiny.test.images, tiny.test.labels
    reference = dml.from_arrays(images, labels).load(None).test
    named = [f"class {label}" for label in labels]
    forms = [images[:, 0], torch.from_numpy(images), torch.from_numpy(images).float() / 255]
    for form in forms:
        found = dml.from_arrays(form, named).load(None).test
        assert np.array_equal(found.images, reference.images)
        assert np.array_equal(found.labels, reference.labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((4, 8, 8, 3), np.uint8)}, r"move the channels to the front"),
        ({"images": np.zeros((4, 8), np.uint8)}, r"must be \(N, C, H, W\)"),
        ({"images": np.full((40, 8, 8), 0.123)}, "whole multiples of 1/255"),
        ({"images": np.full((40, 8, 8), 7.0)}, r"in \[0, 1\]"),
        ({"images": np.full((40, 8, 8), np.nan)}, "whole multiples of 1/255"),
        ({"labels": [1, 2]}, "40 images need as many labels, got 2"),
        ({"labels": [1] * 40}, "two or more classes"),
        ({"name": "a/b"}, "letters, digits"),
        ({"train": (np.zeros((2, 4, 4), np.uint8), [0, 1])}, "must have one shape"),
    ],
)
def test_bad_images_are_one_line(
    tiny: RetrievalData, change: dict[str, object], message: str
) -> None:
    given = {"images": tiny.test.images, "labels": tiny.test.labels} | change
    with pytest.raises(dml.UserError, match=message) as caught:
        dml.from_arrays(**given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"attacks": "ca"}, "unknown attack 'ca'"),
        ({"suite": "stric"}, "did you mean .strict.|one of strict"),
        ({"attacks": ATTACKS.get("es")(eps=-1.0)}, "eps must be"),
        ({"precision": "fp8"}, "precision must be one of fp32"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"queries": 40}, "the test split has 40 images"),
        ({"queries": 0}, "queries must be at least 1 and a whole number, got 0"),
        ({"queries": -1}, "queries must be at least 1 and a whole number, got -1"),
        ({"queries": 1.5}, "queries must be at least 1 and a whole number, got 1.5"),
        ({"batch_size": 1.5}, "batch_size must be at least 1 and a whole number, got 1.5"),
        ({"mean": [0.5]}, "mean and std go together"),
        ({"device": "cuda:99"}, "cuda:99 cannot be used"),
        ({"model": "absent.pt"}, "absent.pt does not exist"),
        ({"model": "c2f3"}, "did you mean 'c2f2'"),
        ({"model": "c2f2", "metric": "E"}, "network='c2f2:metric=E'"),
        ({"model": nn.Flatten(0)}, "Flatten cannot embed 1x8x8 images"),
    ],
)
def test_mistakes_are_user_errors_of_one_line(
    net: nn.Module, small: Dataset, how: dict[str, object], message: str
) -> None:
    given = {"model": net, "dataset": small, "attacks": "es", "progress": False} | how
    with pytest.raises(dml.UserError, match=message) as caught:
        dml.evaluate(**given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("validate", [-1, 1.5])
def test_epochs_between_validations_are_a_whole_number(
    small: Dataset, tmp_path: Path, validate: Any
) -> None:
    with pytest.raises(dml.UserError, match="validate must be at least 0 and a whole number, got"):
        dml.train("none", small, validate=validate, results=tmp_path, progress=False)


def test_training_leaves_the_callers_generator(small: Dataset, tmp_path: Path) -> None:
    expected = torch.get_rng_state()
    dml.train("none", small, recipe="epochs=1,pairs=8", results=tmp_path, progress=False)
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_run_file_says_where_data_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of the command line does, so that ``run --config`` finds the same data."""
    places = {"data_root": tmp_path, "cache": tmp_path / "cache", "batch_size": 64}
    recorded: dict[str, Any] = {}
    monkeypatch.setattr(runs, "run_sweep", lambda *given: recorded.update(given[-1]) or [])
    dml.run("none", "es:steps=1", results=tmp_path, progress=False, **places)  # type: ignore[arg-type]
    assert {key: recorded[key] for key in places} == places


class Breaks(nn.Module):
    """A network without gradients."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.requires_grad:
            raise RuntimeError("no gradients here")
        return x.flatten(1)


def test_every_failed_cell_is_in_the_report(small: Dataset) -> None:
    attacks = ["es", "es:steps=2"]
    report = dml.evaluate(Breaks(), small, ["strict", "ers"], attacks, progress=False)
    assert report.failed.keys() == {
        f"{attack} (suite={suite})" for attack in attacks for suite in ("strict", "ers")
    }


def test_a_failed_attack_is_in_the_report(small: Dataset) -> None:
    report = dml.evaluate(Breaks(), small, attacks="es", progress=False)
    assert report["R@1"].value > 0
    assert report.failed == {"es": "RuntimeError: no gradients here"}


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_gradients_are_on_whatever_the_caller_has_set(
    small: Dataset, mode: str, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"dataset": small, "attacks": "ca+", "queries": 8}
    torch.manual_seed(0)
    net = own_network()
    outside = dml.evaluate(net, **asked, progress=False)
    with getattr(torch, mode)():
        inside = dml.evaluate(net, **asked, progress=False)
        dml.train("none", small, recipe="epochs=1,pairs=4", results=tmp_path, progress=False)
        assert not torch.is_grad_enabled()
    assert inside["CA+"] == outside["CA+"]
    assert inside["CA+"].value < 40  # untouched it is 50


def test_a_fresh_report_draws_the_ranks_and_lists_its_numbers(small: Dataset) -> None:
    report = dml.evaluate(own_network(), small, attacks=["ca+", *FEW], progress=False)
    assert report.plot("ranks") is not None
    assert "CA+" in report
    assert "QA+" not in report
    assert {"R@1", "CA+", "CA+ (steps=2)"} <= set(report)


def test_a_missing_number_comes_with_what_failed(small: Dataset) -> None:
    class Raises(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = own_network()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled() and images.requires_grad:
                raise ValueError("not to be attacked")
            embeddings: torch.Tensor = self.inner(images)
            return embeddings

    report = dml.evaluate(Raises(), small, attacks="ca+:steps=2", progress=False)
    with pytest.raises(KeyError, match=r"there are R@1, .*; ca\+:steps=2 failed: .*be attacked"):
        report["CA+"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"eps": 8}, "eps must be within 0 and 1, as pixels are, got 8: 8/255?"),
        ({"eps": float("nan")}, "eps must be within 0 and 1"),
        ({"eps": "eight"}, "eps must be a number or a fraction '8/255', got 'eight'"),
        ({"alpha": None}, "alpha must be a number or a fraction '8/255', got None"),
        ({"steps": 0}, "steps must be at least 1 and a whole number, got 0"),
        ({"steps": 2.5}, "steps must be at least 1 and a whole number, got 2.5"),
        ({"images": [np.zeros((8, 8)), np.zeros((9, 9))]}, "a list of images of one size"),
    ],
)
def test_wrong_arguments_of_from_arrays(changed: dict[str, Any], words: str) -> None:
    right: dict[str, Any] = {"images": np.zeros((4, 8, 8), np.uint8), "labels": [0, 0, 1, 1]}
    with pytest.raises(dml.UserError, match=re.escape(words)):
        dml.from_arrays(**right | changed)


def test_a_radius_may_be_a_fraction_in_words_or_of_numpy() -> None:
    made = [
        dml.from_arrays(np.zeros((4, 8, 8), np.uint8), [0, 0, 1, 1], eps=eps).card.threat.eps  # type: ignore[attr-defined,arg-type]
        for eps in (8 / 255, "8/255", np.float64(8 / 255))
    ]
    assert len(set(made)) == 1
    assert all(type(one) is float for one in made)


def test_images_in_half_precision_are_those_of_8_bits() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    half = (torch.from_numpy(pixels).float() / 255).half()
    made = dml.from_arrays(half, [0, 0, 1, 1])
    assert np.array_equal(made.load(None).test.images[:, 0], pixels)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": lambda x: x}, "model must be a torch.nn.Module, a file of weights, or a spec"),
        ({"dataset": [1, 2]}, "what dmlbench.from_arrays(images, labels) makes"),
        ({"mean": 0.5, "std": 0.5}, "mean and std must be one number per channel each, got 0.5"),
        ({"mean": [104], "std": [1]}, "divide both by 255 if yours are of 0..255"),
        ({"mean": [0.5], "std": [0]}, "std above 0"),
        ({"metric": "cosine"}, "metric must be one of N, E, C, got 'cosine'"),
        ({"network": "lenet"}, "network= is for a checkpoint"),
    ],
)
def test_wrong_arguments_of_evaluate(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(dml.UserError, match=re.escape(words)):
        dml.evaluate(**{"model": own_network(), "progress": False} | changed)


def test_a_set_without_images_to_train_on_says_so(tmp_path: Path) -> None:
    data = dml.from_arrays(np.zeros((4, 8, 8), np.uint8), [0, 0, 1, 1])
    with pytest.raises(dml.UserError, match="no images to train on: give it some"):
        dml.train("none", data, results=tmp_path, progress=False)


@pytest.mark.slow
def test_a_script_that_starts_workers_without_a_guard_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import dmlbench\n"
        "report = dmlbench.run('none', 'ca+', recipe='epochs=1', queries=5, workers=2, threads=1)\n"
        "print(report.failed)\n"
    )
    done = subprocess.run(
        [sys.executable, "own.py"], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE
    )
    assert "below if __name__ == '__main__':" in done.stdout + done.stderr
