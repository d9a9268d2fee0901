"""The whole path at 224 px, for real: ResNet-18, undefended and HM, every attack, on a CPU."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from dmlbench.attacks.base import ATTACKS
from tests import trees

Run = Callable[..., "subprocess.CompletedProcess[str]"]
CLASSES, TRAIN_CLASSES, EACH = 16, 12, 8


@pytest.mark.slow
def test_resnet18_on_natural_looking_images(dmlbench: Run, tmp_path: Path) -> None:
    """128 images, one epoch from random weights, attacks of one step: minutes, not a protocol."""
    root = trees.folder(tmp_path / "set", CLASSES, EACH, size=(320, 240))
    names = [name for name in ATTACKS.names() if ATTACKS.get(name).card.paper]
    attacks = [word for name in names for word in ("--attack", f"{name}:steps=1")]
    arguments = (
        "run", "--dataset", f"folder:root={root},train_classes={TRAIN_CLASSES}",
        "--model", "resnet18:weights=none,freeze_bn=false", "--recipe", "epochs=1,pairs=16,lr=1e-3",
        "--defense", "hm:eta=1", "--cache", "decoded", "--threads", "2", *attacks,
    )  # fmt: skip
    done = dmlbench(*arguments, timeout=3600)
    assert done.returncode == 0, done.stderr
    print(done.stdout, done.stderr)
    rows = pd.read_csv(tmp_path / "results" / "wide.csv").set_index("defense")
    assert set(rows.index) == {"none", "hm:eta=1"}
    columns = [c.name for name in names for c in ATTACKS.get(name).columns]
    assert rows[[f"{name} (steps=1)" for name in columns]].notna().all(axis=None)
    assert rows["R@1"].between(0, 100).all()
    cells = [json.loads(p.read_text()) for p in (tmp_path / "results" / "cells").glob("*.json")]
    attacked = [cell for cell in cells if cell["facts"]["kind"] == "attack"]
    assert len(attacked) == 2 * len(names)
    for cell in attacked:
        assert 0 < cell["findings"]["radius"] <= 8 / 255 + 1e-6
        assert {m["n"] for m in cell["metrics"].values()} == {(CLASSES - TRAIN_CLASSES) * EACH}
