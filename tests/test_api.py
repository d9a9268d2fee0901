"""``import dmlbench``: measuring, training and loading from Python."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import dmlbench as dml
from dmlbench.api import runs
from dmlbench.api.evaluate import _is_path
from dmlbench.datasets.base import Dataset, RetrievalData
from tests.faults import PATIENCE
from tests.fork_server import ForkServer
from tests.networks import FEW, OWN, own_network

Run = Callable[..., "subprocess.CompletedProcess[str]"]


ROOT = Path(__file__).parent.parent


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
    dmlbench: Run, fork_server: ForkServer, tmp_path: Path
) -> None:
    (tmp_path / "mynet.py").write_text(OWN)
    names: dict[str, Any] = {}
    exec(OWN, names)
    state = names["make"]().state_dict()
    torch.save({f"backbone.{name}": value for name, value in state.items()}, tmp_path / "w.pt")
    printed = fork_server.python(FIFTEEN_LINES, tmp_path)
    assert "ERS ↑" in printed.stdout, printed.stderr
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


def test_a_model_is_found_though_others_are_damaged_or_set_aside(
    small: Dataset, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"recipe": {"epochs": 1, "pairs": 8}, "progress": False}
    trained = dml.train("none", small, results=tmp_path, **how)
    (folder,) = (tmp_path / "models").iterdir()
    aside = tmp_path / "quarantine" / "models"
    shutil.copytree(folder, aside / folder.name)
    (aside / folder.name / "checkpoint.safetensors").write_bytes(b"damaged")
    for place in (aside, tmp_path / "models"):
        (place / "other").mkdir()
        (place / "other" / "manifest.json").write_text("{}")
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(dml.load_model("none", results=tmp_path)(x), trained(x))
    said = r"no model 'hm' in .*; there are none; .*models/other/manifest.json is damaged"
    with pytest.raises(dml.UserError, match=said):
        dml.load_model("hm", results=tmp_path)


def test_reports_are_compared_query_by_query_as_the_stored_models_are(
    net: nn.Module, small: Dataset, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    other = own_network()
    how: dict[str, Any] = {"attacks": "es:steps=2", "results": tmp_path, "progress": False}
    first = dml.evaluate(net, small, label="one", **how)
    second = dml.evaluate(other, small, label="two", **how)
    name = "ES:D (steps=2)"
    frame = dml.compare(first, second)
    assert frame["paired"].all()
    (row,) = frame.query("metric == 'ES:D'").to_dict("records")
    cell = next(one["cell"] for one in second.records if one["metric"] == "ES:D")
    mine = next(one["cell"] for one in first.records if one["metric"] == "ES:D")
    differences = second.outcomes[cell]["ES:D"] - first.outcomes[mine]["ES:D"]
    assert row["difference"] == pytest.approx(differences.mean())
    assert row["difference"] == pytest.approx(second[name].value - first[name].value)
    half = 1.96 * differences.std() / len(differences) ** 0.5
    assert row["high"] - row["low"] == pytest.approx(2 * half, rel=0.2)
    assert row["favours"] == ("B" if row["high"] < 0 else "A" if row["low"] > 0 else "")
    for a, b in (("one", "two"), (first, "two"), ("one", second)):
        pd.testing.assert_frame_equal(dml.compare(a, b, results=tmp_path), frame)
    (tmp_path / "far").mkdir()
    shutil.copy(tmp_path / "results.csv", tmp_path / "far")
    rows = dml.compare("one", "two", results=tmp_path / "far")
    assert not rows["paired"].any()
    (apart,) = rows.query("metric == 'ES:D'").to_dict("records")
    assert apart["difference"] == pytest.approx(row["difference"])
    assert apart["high"] - apart["low"] > row["high"] - row["low"]


def test_reports_that_are_no_single_model_are_refused(small: Dataset, tmp_path: Path) -> None:
    how: dict[str, Any] = {"recipe": {"epochs": 1, "pairs": 8}, "progress": False}
    both = dml.run("hm:eta=2", "ca+", dataset=small, results=tmp_path, **how)
    with pytest.raises(dml.UserError, match=r"^a: .* of one model .* it has N/A\[R\], HM"):
        dml.compare(both, both)
    with pytest.raises(dml.UserError, match="stored results has no outcomes of single queries"):
        dml.compare(dml.load_results(tmp_path), "hm:eta=2", results=tmp_path)
    with pytest.raises(dml.UserError, match="nothing was measured of 'est'"):
        dml.compare("none", "est", results=tmp_path)
    with pytest.raises(dml.UserError, match=r"b: .* it has none"):
        dml.compare("none", dml.Report(()), results=tmp_path)


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


def bfloat16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, bfloat16])
def test_gradients_and_precision_are_not_those_of_the_caller(
    small: Dataset, mode: Callable[[], AbstractContextManager[None]], tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"dataset": small, "attacks": "ca+", "queries": 8}
    torch.manual_seed(0)
    net = own_network()
    outside = dml.evaluate(net, **asked, progress=False)
    training: dict[str, Any] = {"recipe": "epochs=1,pairs=4", "progress": False}
    with mode():
        inside = dml.evaluate(net, **asked, progress=False)
        dml.train("none", small, **training, results=tmp_path / "inside")
        assert not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
    dml.train("none", small, **training, results=tmp_path / "outside")
    assert inside["CA+"] == outside["CA+"]
    assert inside["mAP"] == outside["mAP"]
    files = sorted(tmp_path.rglob("checkpoint.safetensors"))
    assert files[0].read_bytes() == files[1].read_bytes()
    assert inside["CA+"].value < 40  # untouched it is 50


def test_two_radii_under_one_name_of_a_data_set_are_warned_of(
    tiny: RetrievalData, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"attacks": "es", "queries": 4, "results": tmp_path, "progress": False}
    for eps in (0.1, 0.05):
        data = dml.from_arrays(tiny.test.images, tiny.test.labels, eps=eps)
        with (
            nullcontext()
            if eps == 0.1
            else pytest.warns(UserWarning, match=r"es on arrays has eps")
        ):
            dml.evaluate(own_network(), data, label=str(eps), **how)


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
