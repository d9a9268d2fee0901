"""A complete run at 224 px on a CPU: ResNet-18, undefended and HM, every attack."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from dmlbench.attacks.base import ATTACKS
from dmlbench.core.protocol import ERS_ATTACKS
from tests import trees

Run = Callable[..., "subprocess.CompletedProcess[str]"]
CLASSES, TRAIN_CLASSES, EACH, QUERIES = 20, 10, 16, 8


@pytest.mark.slow
def test_resnet18_on_natural_looking_images(dmlbench: Run, tmp_path: Path) -> None:
    """320 images, one epoch from random weights; 8 queries, and four steps, which can cross the
    ball of the 224 px suite: minutes on a CPU, and no protocol.
    """
    root = trees.folder(tmp_path / "set", CLASSES, EACH, size=(320, 240))
    names = [*ERS_ATTACKS, "sp-qa+", "sp-qa-"]  # by PGD
    attacks = [word for name in names for word in ("--attack", f"{name}:steps=4")]
    arguments = (
        "run", "--dataset", f"folder:root={root},train_classes={TRAIN_CLASSES}",
        "--model", "resnet18:weights=none,freeze_bn=false", "--recipe", "epochs=1,pairs=16,lr=1e-3",
        "--defense", "hm:eta=4", "--cache", "decoded", "--threads", "1",
        "--queries", str(QUERIES), *attacks,
    )  # fmt: skip
    done = dmlbench(*arguments, timeout=3600)
    assert done.returncode == 0, done.stderr
    print(done.stdout, done.stderr)
    rows = pd.read_csv(tmp_path / "results" / "wide.csv").set_index("defense")
    assert set(rows.index) == {"none", "hm:eta=4"}
    columns = [c.name for name in names for c in ATTACKS.get(name).columns]
    assert rows[[f"{name} (steps=4)" for name in columns]].notna().all(axis=None)
    assert rows["R@1"].between(0, 100).all()
    cells = [json.loads(p.read_text()) for p in (tmp_path / "results" / "cells").glob("*.json")]
    attacked = [cell for cell in cells if cell["facts"]["kind"] == "attack"]
    assert len(attacked) == 2 * len(names)
    for cell in attacked:
        assert "eps=8/255,alpha=3/255,steps=4" in cell["about"]["attack_resolved"]
        assert 0 < cell["findings"]["radius"] <= 8 / 255 + 1e-6
        assert {m["n"] for m in cell["metrics"].values()} == {QUERIES}
    assert rows["ES:D (steps=4)"].gt(0.01).all()  # even networks that have hardly learned are moved
