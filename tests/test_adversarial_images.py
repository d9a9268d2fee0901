"""Adversarial images in files, and R@K of moved queries: what a cell holds beside its numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch

from dmlbench.attacks import moved_query
from dmlbench.attacks.base import ATTACKS, Gallery
from dmlbench.datasets.base import RetrievalData
from dmlbench.report.columns import asked_for
from dmlbench.storage import adversarial
from tests.evaluations import measured

Run = Callable[..., "CompletedProcess[str]"]
ATTACKED = ("es", "ca+", "ltm", "gtm", "ltm:bits=8")
ASK = ["--dataset", "tiny", *(word for name in ATTACKED for word in ("--attack", name))]


@pytest.mark.parametrize("metric", ["N", "E", "C"])
def test_columns_of_a_moved_query_against_a_sorted_gallery(metric: str) -> None:
    x = torch.nn.functional.normalize(torch.randn(30, 4, dtype=torch.float64), dim=1)
    labels = torch.arange(30) % 7
    gallery = Gallery(x, labels, metric)  # type: ignore[arg-type]
    index = torch.tensor([3, 8, 20])
    e = torch.nn.functional.normalize(x[index] + 0.8 * torch.randn(3, 4, dtype=x.dtype), dim=1)
    found = moved_query.outcomes(moved_query.columns("A"), e, index, gallery)
    assert list(found) == ["A:R@1", "A:R@2", "A:R@4", "A:R@8", "A:D"]
    for row, own in enumerate(index.tolist()):
        moved = 1 - e[row] @ x[own] if metric == "C" else (e[row] - x[own]).norm()
        torch.testing.assert_close(found["A:D"][row], moved)
        others = [i for i in range(30) if i != own]
        others.sort(key=lambda i: float((e[row] - x[i]).norm()))
        for k in moved_query.CUTOFFS:
            hit = any(labels[i] == labels[own] for i in others[:k])
            assert found[f"A:R@{k}"][row] == 100 * hit


def test_which_attacks_have_them() -> None:
    names = {a.card.name: [c.name for c in moved_query.columns_of(a)] for a in ATTACKS}
    assert names["ca+"] == names["ca-"] == []
    assert names["es"] == [f"ES:R@{k}" for k in (1, 2, 4, 8)]  # ES:D is its own
    assert names["ltm"] == [*(f"LTM:R@{k}" for k in (1, 2, 4, 8)), "LTM:D"]
    every = [name for found in names.values() for name in found]
    assert len(set(every)) == len(every)
    assert not set(every) & {c.name for a in ATTACKS for c in a.headings()}
    assert all(asked_for(f"{name} (steps=2)") for name in every)
    assert not any(asked_for(name) for name in ("ES:D", "ES:R", "R@1", "LTM", "ES:D (steps=2)"))


def cells(results: Path) -> dict[str, dict[str, Any]]:
    """Attack -> its cell."""
    found = [json.loads(path.read_text()) for path in sorted((results / "cells").glob("*.json"))]
    return {cell["about"]["attack"]: cell for cell in found}


def test_recalls_and_images_are_stored_where_asked_and_change_nothing_else(
    dmlbench: Run, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    first = ["run", "--defense", "none", "--recipe", "epochs=1", *ASK]
    assert dmlbench(*first).returncode == 0
    plain, board = cells(results), (tmp_path / "leaderboards" / "tiny.md").read_bytes()
    done = dmlbench(*first, "--recalls")
    assert "5 tasks took" in done.stderr  # with the worst case; ca+ and clean images have no more
    wider = cells(results)
    assert {a: c["id"] for a, c in wider.items()} == {a: c["id"] for a, c in plain.items()}
    assert wider["ca+"] == plain["ca+"]
    for attack in ("es", "ltm", "gtm", "ltm:bits=8"):
        assert wider[attack]["metrics"].items() > plain[attack]["metrics"].items()
    assert wider["es"]["metrics"]["ES:R@1"] == plain["es"]["metrics"]["ES:R"]
    recalls = [wider["es"]["metrics"][f"ES:R@{k}"]["value"] for k in (1, 2, 4, 8)]
    assert recalls == sorted(recalls)
    assert (tmp_path / "leaderboards" / "tiny.md").read_bytes() == board
    assert "there was nothing to do" in dmlbench(*first).stderr
    named = ["leaderboard", "--format", "md", "--column", "ES:R@4", "--against", "nothing"]
    assert dmlbench(*named).returncode == 0
    assert "| ES:R@4 ↑ |" in (tmp_path / "leaderboards" / "tiny.md").read_text()

    (weights,) = (results / "models").glob("*/checkpoint.safetensors")
    saving = ["attack", "--checkpoint", str(weights), *ASK, "--save-adversarial", "all"]
    done = dmlbench(*saving)
    assert done.returncode == 0, done.stderr
    assert "Saved: the images of each attack in results/adversarial/CELL.npz" in done.stdout
    saved = cells(results)
    for attack, cell in saved.items():
        assert cell["metrics"] == wider[attack]["metrics"]  # the recalls stay
        assert cell["about"] == wider[attack]["about"]
        path = results / "adversarial" / f"{cell['id']}.npz"
        if attack in ATTACKED:
            content = path.read_bytes()
            assert hashlib.sha256(content).hexdigest() == cell["findings"]["adversarial_sha256"]
        else:
            assert not path.exists()
    files = {a: f"results/adversarial/{saved[a]['id']}.npz" for a in ATTACKED}
    read = {a: np.load(tmp_path / file) for a, file in files.items()}
    perturbs = {a: str(one["perturbs"]) for a, one in read.items()}
    assert perturbs == dict.fromkeys(ATTACKED, "query") | {"ca+": "candidate"}
    assert [one["index"].tolist() for one in read.values()] == [[*range(40)]] * 5
    types = {a: one["images"].dtype for a, one in read.items()}
    assert types == dict.fromkeys(ATTACKED, np.float32) | {"ltm:bits=8": np.uint8}
    own = dmlbench("verify-attack", files["es"], "--row", "none", "--by", "me", "--json")
    said = json.loads(own.stdout)
    assert (said["images"], said["broken"], said["stored"]) == (40, 0, False)
    assert said["right"] == saved["es"]["metrics"]["ES:R"]["value"]
    (results / "adversarial" / f"{saved['es']['id']}.npz").unlink()
    assert "2 tasks took" in dmlbench(*saving).stderr  # es, and the worst case
    refused = dmlbench(*saving[:-1], "some")
    assert refused.returncode == 2
    assert "'some' is neither a whole number nor 'all'" in refused.stderr


def test_the_images_are_those_that_were_measured(tiny: RetrievalData, tmp_path: Path) -> None:
    with measured(tiny) as evaluation:
        for name, fields in (("es", {}), ("qa+", {"bits": 8})):
            attack = ATTACKS.get(name)(steps=3, eps=0.1, alpha=0.04, suite="strict", **fields)
            path = tmp_path / f"{name}.npz"
            found = evaluation.attack(attack, 0, name, queries=25, recalls=True, save=path)
            with np.load(path) as file:
                index, images = torch.from_numpy(file["index"]), torch.from_numpy(file["images"])
            if images.dtype == torch.uint8:
                images = images.float().div(255)
            moved = (images - evaluation.images(index)).abs().max()
            assert float(moved) == pytest.approx(found.findings["radius"], abs=1e-7)
            again = evaluation.moved(moved_query.columns_of(type(attack)), images, index)
            for column, values in again.items():
                stored = found.outcomes[column][index]
                np.testing.assert_allclose(stored, values.numpy(), atol=1e-5)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    index, image = np.arange(6), np.random.default_rng(0).random((6, 1, 4, 4), dtype=np.float32)
    path = tmp_path / "deep" / "a.npz"

    def interrupted(error: type[Exception] | None) -> None:
        with adversarial.writer(path, index, "query") as add:
            add(image[:2])
            if error:
                raise error

    with pytest.raises(KeyError):
        interrupted(KeyError)
    with pytest.raises(ValueError, match="6 images were announced, 2 came"):
        interrupted(None)
    assert list(path.parent.iterdir()) == []
    for _ in range(2):
        with adversarial.writer(path, index, "query") as add:
            add(image[:4])
            add(image[4:])
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(path.parent.iterdir()) == [path]
    assert np.array_equal(np.load(path)["images"], image)
    with adversarial.reader(path, 10, (1, 4, 4)) as found:
        assert found.sha256 == digest
        parts = list(found.batches(4))
    assert [part.tolist() for part, _ in parts] == [[0, 1, 2, 3], [4, 5]]
    assert np.array_equal(np.concatenate([one for _, one in parts]), image)
