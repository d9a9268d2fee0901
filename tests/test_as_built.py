"""Networks that are measured as their code builds them: their identity, and their rows."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from tests.command import Run

NETS = """
from pathlib import Path
import torch
from torch import nn

class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = float(Path("shift.txt").read_text())
    def forward(self, x):
        return x.flatten(1)[:, ::4] + self.shift

class Engine(Shifted):
    def __init__(self):
        super().__init__()
        self.engine = object()
"""
ASK = ("--dataset", "tiny", "--attack", "es:steps=1", "--queries", "5")


def test_it_is_known_by_what_its_code_read_and_can_be_reproduced(
    dmlbench: Run, tmp_path: Path
) -> None:
    """It has no parameters."""
    (tmp_path / "nets.py").write_text(NETS)
    nothing_to_do = []
    for shift in ("0.1", "0.1", "0.9"):
        (tmp_path / "shift.txt").write_text(shift)
        done = dmlbench("attack", "--model", "nets.py:Shifted", *ASK, "--label", shift)
        assert done.returncode == 0, done.stderr
        nothing_to_do.append("nothing to do" in done.stderr)
    assert nothing_to_do == [False, True, False]
    again = dmlbench("reproduce", "0.9", "--allow-code")
    assert again.returncode == 0, again.stderr
    assert "built by nets.py:Shifted" in again.stdout
    for arguments, reason in (
        (("reproduce", "0.1", "--allow-code"), "and nets.py:Shifted builds other weights"),
        (("submit", "0.9", "--by", "me", "--out", "b.zip"), "was measured as it was built"),
    ):
        refused = dmlbench(*arguments)
        assert (refused.returncode, reason in refused.stderr) == (2, True), refused.stderr


def test_code_that_builds_the_same_by_any_seed_has_no_seed(dmlbench: Run, tmp_path: Path) -> None:
    """The seed of an attack is then in its name, and the next run has the usual one."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "shift.txt").write_text("0.1")
    for seed in ((), ("--seed", "3"), ()):
        done = dmlbench("attack", "--model", "nets.py:Shifted", *ASK, *seed)
        assert done.returncode == 0, done.stderr
    (row,) = pd.read_csv(tmp_path / "results" / "wide.csv").to_dict("records")
    assert row["seed"] == 0
    assert {"ES:D (steps=1)", "ES:D (steps=1,attack_seed=3)"} <= row.keys()


def test_what_cannot_be_compared_is_named_where_stored_numbers_are_taken(
    dmlbench: Run, tmp_path: Path
) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "shift.txt").write_text("0.1")
    said = [dmlbench("attack", "--model", "nets.py:Engine", *ASK).stderr for _ in range(2)]
    warning = "stored numbers of nets.py:Engine are taken: its code and weights are the same, but"
    assert [f"{warning} engine cannot be compared" in one for one in said] == [False, True]
