"""The zoo: models in the package, weights that are fetched and checked, cards."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dmlbench as dml
from dmlbench.analysis.csv_files import read_tidy
from dmlbench.analysis.lookup import weights_digest
from dmlbench.common.errors import UserError
from dmlbench.common.hashing import file_sha256
from dmlbench.core import spec
from dmlbench.datasets.base import DATASETS
from dmlbench.models.base import parse_model
from dmlbench.storage.checkpoint import MANIFEST, WEIGHTS, read_manifest
from dmlbench.sweep import plan
from dmlbench.sweep.requests import parse_all, parse_recipe
from dmlbench.zoo import fetch, registry
from dmlbench.zoo.registry import ZooModel, card_of, model, models
from tests.command import refused

Run = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).parent.parent
MINI = [name for name in models() if name.startswith("fashion-mini/")]


@pytest.mark.parametrize("name", models())
def test_a_card_is_of_the_model_that_its_command_trains(name: str) -> None:
    """Identity of the training, weights, rows: each as today's code has it."""
    one = model(name)
    words = one.entry.command.split()
    given = dict(zip(words[2::2], words[3::2], strict=True))
    dataset = spec.parse(given["--dataset"], DATASETS)
    recipe = parse_recipe(dataset, given.get("--recipe", ""))
    from dmlbench.defenses.base import DEFENSES

    (training,) = plan.plan(
        dataset,
        str(one.manifest.training["data"]),
        parse_model(dataset.protocol.model),
        parse_all([given["--defense"]], DEFENSES),
        [int(given["--seed"])],
        recipe,
    )
    assert training.facts == one.manifest.training
    assert one.home is not None
    weights = one.home / WEIGHTS
    assert (file_sha256(weights), weights.stat().st_size) == (
        one.manifest.sha256,
        one.entry.bytes,
    )
    rows = read_tidy(one.rows)
    assert {row["checkpoint_sha256"] for row in rows} == {one.manifest.sha256}
    assert {"strict"} < {row["suite"] for row in rows}
    assert card_of(one.manifest.sha256) == one


def test_the_committed_rows_are_on_the_cards() -> None:
    for name in ("fashion/none", "fashion/hm"):
        with (ROOT / "results" / "fashion.csv").open(newline="") as file:
            lines = [row for row in csv.reader(file) if model(name).manifest.sha256 in row]
        with model(name).rows.open(newline="") as file:
            assert list(csv.reader(file))[1:] == lines
        (source,) = model(name).entry.sources
        assert read_manifest(ROOT / source) == model(name).manifest
    assert card_of("0" * 64) is None


@pytest.mark.parametrize("name", MINI)
def test_a_model_loads_by_its_name(name: str) -> None:
    net = dml.load_model(name)
    embedded = net(torch.rand(3, 1, 28, 28))
    assert embedded.shape == (3, 128)
    assert not net.training


def test_the_name_stands_where_a_checkpoint_does() -> None:
    report = dml.evaluate("fashion-mini/est", attacks="es", queries=4, progress=False)
    (row,) = [r for r in read_tidy(model("fashion-mini/est").rows) if r["metric"] == "mAP"]
    assert report["mAP"].value == pytest.approx(row["value"], abs=0.05)
    assert weights_digest(fetch.local_or_zoo("fashion-mini/est")) == row["checkpoint_sha256"]
    assert fetch.local_or_zoo("nobody/est") == Path("nobody/est")


def test_the_list_and_a_card(dmlbench: Run) -> None:
    listed = dmlbench("zoo")
    assert listed.returncode == 0
    for name in models():
        assert name in listed.stdout
    (card,) = json.loads(dmlbench("zoo", "fashion-mini/hm", "--json").stdout)
    assert card["sha256"] == model("fashion-mini/hm").manifest.sha256
    assert {"rows", "licence", "command", "recipe", "home"} < card.keys()
    shown = dmlbench("zoo", "fashion-mini/hm").stdout
    for word in ("HM[S,g_LGA]&ICS", "eps=77/255", "Apache-2.0", "MIT", "Robust R@1"):
        assert word in shown
    refused(dmlbench("zoo", "fashion-mini/hn"), "did you mean 'fashion-mini/hm'")
    both = ("attack", "--zoo", "fashion-mini/hm", "--checkpoint", "x.pt")
    refused(dmlbench(*both), "--checkpoint and --zoo")


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ZooModel:
    """A model whose weights are on a host that does not exist yet, and kept in ``tmp_path``."""
    monkeypatch.setattr(registry, "CACHE", tmp_path / "kept")
    near = model("fashion-mini/hm")
    entry = type(near.entry)(
        **{field: getattr(near.entry, field) for field in near.entry.__struct_fields__}
        | {"sources": ("https://example.org/a.safetensors", "https://example.org/b.safetensors")}
    )
    monkeypatch.setattr(ZooModel, "folder", property(lambda one: tmp_path / "package"))
    (tmp_path / "package").mkdir()
    content = (registry.PACKAGE / "models" / near.name / MANIFEST).read_bytes()
    (tmp_path / "package" / MANIFEST).write_bytes(content)
    return ZooModel(near.name, entry, near.manifest)


def serve(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any]) -> list[str]:
    """Hosts that answer as told: bytes, or an error."""
    asked: list[str] = []

    def download(url: str, partial: Path, reporter: object, most: int) -> None:
        assert most == model("fashion-mini/hm").entry.bytes
        asked.append(url)
        answer = answers[url[-13:]]
        if isinstance(answer, Exception):
            raise answer
        partial.write_bytes(answer)

    monkeypatch.setattr(fetch, "download", download)
    return asked


def test_weights_are_fetched_once_and_checked(
    far: ZooModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = (registry.PACKAGE / "models" / "fashion-mini" / "hm" / WEIGHTS).read_bytes()
    assert far.home is None
    asked = serve(monkeypatch, {"a.safetensors": UserError("no host"), "b.safetensors": good})
    folder = fetch._fetch(far)
    assert folder == far.kept == far.home
    assert len(asked) == 2
    assert dml.load_model(folder)(torch.rand(1, 1, 28, 28)).shape == (1, 128)


def test_another_file_than_the_registrys_is_refused(
    far: ZooModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, {"a.safetensors": b"other", "b.safetensors": UserError("no host")})
    with pytest.raises(UserError, match=r"served another file .* no host; put the file .* train"):
        fetch._fetch(far)
    assert far.home is None
    assert list(far.kept.glob("[!.]*")) == []


def test_a_source_is_https_or_the_hub(far: ZooModel, tmp_path: Path) -> None:
    for source in ("http://example.org/x", "file:///etc/passwd"):
        with pytest.raises(UserError, match="is neither https"):
            fetch.fetch_weights(source, "0" * 64, tmp_path / "w", tmp_path, 1)
    for source in ("hf://", "hf://x", "hf://a/b", "hf://a/b/", "hf://a//w@main"):
        with pytest.raises(UserError, match="is not hf://OWNER/REPO/FILE"):
            fetch.fetch_weights(source, "0" * 64, tmp_path / "w", tmp_path, 1)


def test_weights_of_a_clone_are_explained_to_who_has_none(
    far: ZooModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = type(far.entry)(
        **{field: getattr(far.entry, field) for field in far.entry.__struct_fields__}
        | {"sources": ("results/nowhere",)}
    )
    absent = ZooModel(far.name, only, far.manifest)
    monkeypatch.setattr(fetch, "model", lambda name: absent)
    with pytest.raises(UserError, match=r"come with a clone .*results/nowhere.*dmlbench train"):
        fetch.zoo_folder(far.name)
    good = (registry.PACKAGE / "models" / "fashion-mini" / "hm" / WEIGHTS).read_bytes()
    far.kept.mkdir(parents=True)
    (far.kept / WEIGHTS).write_bytes(good)  # by other means, as the error says
    assert dml.load_model(fetch.zoo_folder(far.name)).training is False
