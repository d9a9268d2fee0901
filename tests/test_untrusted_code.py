"""Code that a config, a manifest or a row names runs only where the user allows it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dmlbench.api.evaluate import evaluate
from dmlbench.api.load import load_model
from dmlbench.attacks.base import ATTACKS
from dmlbench.common.errors import UserError
from dmlbench.core.spec import refuse_reference
from dmlbench.datasets.fashion import FashionMini
from dmlbench.models.small import C2F2
from dmlbench.storage import checkpoint
from dmlbench.sweep import external
from dmlbench.sweep.external import row_weights
from dmlbench.sweep.external_rows import StoredRow
from dmlbench.sweep.session import open_session
from tests.cells import cell, manifest, with_facts
from tests.untrusted import call, refused

pytestmark = pytest.mark.usefixtures("telltale", "registries")


def stored_model(name: str = "model", **keys: Any) -> Path:
    """A folder with the weights of a small network and a manifest of these keys."""
    folder = Path(name)
    checkpoint.save_weights(folder / checkpoint.WEIGHTS, C2F2(dim=4).build(1, 8))
    digest = checkpoint.file_sha256(folder / checkpoint.WEIGHTS)
    made = manifest(sha256=digest, **keys)
    (folder / checkpoint.MANIFEST).write_text(json.dumps(made.as_json()))
    return folder


@pytest.mark.parametrize("line", ["defense: evil.py:D", "attack: [ca+, 'evil:A:x=1']",
                                  "attack: 'uap:by=\"evil.py:A:x=1\"'",
                                  "dataset: evil.py:S", "model: ./evil.py:make:w=1"])  # fmt: skip
def test_code_that_a_config_names_runs_only_if_it_is_allowed(line: str) -> None:
    Path("x.yaml").write_text(f"{line}\n")
    key = line.partition(":")[0]
    rest = ["defense", "none", "attack", "ca+"]
    flags = [
        f"--{flag}={value}"
        for flag, value in zip(rest[::2], rest[1::2], strict=True)
        if flag != key
    ]
    run = ("run", "--config", "x.yaml", "--dry-run", *flags)
    refused(call(*run), "--config names", "code that would be run", "--allow-code")
    replaced = call(*run, {"defense": "--defense=none", "attack": "--attack=es", "dataset":
                           "--dataset=fashion-mini", "model": "--model=lenet"}[key])  # fmt: skip
    assert replaced.exit_code == 0, replaced.output
    assert not Path("ran").exists()
    allowed = call(*run, "--allow-code")
    assert allowed.exit_code == 2
    assert "has no attribute" in allowed.output
    assert Path("ran").exists()


def test_code_that_a_manifest_or_a_row_names_runs_only_if_it_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = stored_model(model="evil.py:make", image_shape=(1, 8))
    attack = ("attack", "--checkpoint", "model", "--dataset", "fashion-mini", "--attack", "ca+")
    attack += ("--queries", "2")
    refused(call(*attack), "the manifest of model names", "--allow-code")
    with pytest.raises(UserError, match="allow_code=True"):
        load_model(folder)
    stored_model(model="c2f2:dim=4", dataset="evil.py:S")
    refused(call("attack", "--checkpoint", "model", "--attack", "ca+"), "data set evil.py:S")
    with pytest.raises(UserError, match=r"data set evil\.py:S.*allow_code=True"):
        evaluate(folder, attacks="ca+", progress=False)
    stored = cell("R@1", 50, dataset="evil.py:S", attack="worst case", suite="strict")
    row = (SimpleNamespace(about=stored.about),)
    monkeypatch.setattr(external, "find_row", lambda *_: SimpleNamespace(worst=row))
    verify = ("verify-attack", "x.npz", "--row", "hm", "--by", "me")
    refused(call(*verify), "the row of", "data set evil.py:S", "--allow-code")
    assert not Path("ran").exists()
    assert "has no attribute 'S'" in call(*verify, "--allow-code").output
    assert Path("ran").exists()


def test_code_that_a_manifest_names_runs_if_it_is_allowed() -> None:
    folder = stored_model(model="evil.py:make", image_shape=(1, 8))
    with pytest.raises(UserError, match="no attribute 'make'"):
        load_model(folder, allow_code=True)
    assert Path("ran").exists()
    Path("ran").unlink()
    folder = stored_model(model="c2f2:dim=4", dataset="./evil.py:S")
    with pytest.raises(UserError, match="no attribute 'S'"):
        evaluate(folder, attacks="ca+", allow_code=True, progress=False)


def test_verify_attack_runs_the_code_of_a_manifest_only_if_it_is_allowed() -> None:
    folder = stored_model(model="evil.py:make", image_shape=(1, 8))
    worst = with_facts(cell("Robust R@1"), kind="worst case", cells=[])
    row = StoredRow([worst], [], 0.1)
    with open_session(FashionMini(), Path("results"), progress=False) as session:
        with pytest.raises(UserError, match="--allow-code"):
            row_weights(session, row, folder, None)
        assert not Path("ran").exists()
        with pytest.raises(UserError, match="no attribute 'make'"):
            row_weights(session, row, folder, None, allow_code=True)
    assert "--allow-code" in call("verify-attack", "--help").output


@pytest.mark.parametrize(
    "text",
    [
        "evil.py:A",
        "transfer:from=x,by=evil.py:A",
        "transfer:from=x,network=evil.py:make",
        'transfer:from=x,network="evil:make:a=1,b=2"',
        r'transfer:from=x,by="uap:by=\"evil.py:A:x=1\""',
    ],
)
def test_code_is_found_at_any_depth_of_a_spec(text: str) -> None:
    with pytest.raises(UserError, match=r"^a file names .* evil.*, which is code"):
        refuse_reference(text, ATTACKS, "a file")
    assert not Path("ran").exists()
    for harmless in ("uap:by=pair", "transfer:from=x.py,by=ca+", "nothing:by=evil.py:A", "es:,"):
        refuse_reference(harmless, ATTACKS, "a file")


def test_the_model_that_images_are_made_on_brings_no_code() -> None:
    """Its manifest may name a factory: what runs is named by the user alone."""
    stored_model("other", model="evil.py:make:dim=4", image_shape=(1, 8))
    run = ("run", "--defense", "none", "--dry-run", "--attack")
    refused(call(*run, "transfer:from=other"), "evil.py:make", 'network="evil.py:make:dim=4"')
    asked = call(*run, 'transfer:from=other,network="evil.py:make:dim=4"')
    assert "has no attribute 'make'" in asked.output
    assert Path("ran").exists()
