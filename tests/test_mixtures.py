"""A run warns where its numbers would share a column or a mean with those of another code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

Run = Callable[..., "CompletedProcess[str]"]
OWN = """
from dataclasses import dataclass
from dmlbench.attacks.base import ATTACKS, Column
from dmlbench.core.registry import Card
from dmlbench.defenses.base import DEFENSES

@dataclass(frozen=True, kw_only=True)
class Own(type(DEFENSES.get("none")())):
    card = Card("own", "no defense, under another name")
    label = "OWN"
"""
MINE = """
from dataclasses import dataclass
from dmlbench.attacks.base import Attack, Column, RowWise
from dmlbench.core.registry import Card

@dataclass(frozen=True)
class Away(RowWise):
    def value_and_grad(self, e, step):
        return -e.square().sum(1) / 2, -e
    def outcome(self, e):
        return {"MINE": e.square().sum(1)}

@dataclass(frozen=True, kw_only=True)
class Mine(Attack):
    card = Card("mine", "far from zero")
    columns = (Column("MINE", "", "lower"),)
    def goal(self, gallery, index, seed):
        return Away()
"""


def test_two_versions_of_a_file_are_warned_of(dmlbench: Run, tmp_path: Path) -> None:
    def said(seeds: str, *defenses: str, flags: tuple[str, ...] = ()) -> list[str]:
        """The warnings of a run of these models, without those of the plugins."""
        models = [f"--seed={seed}" for seed in seeds] + [f"--defense={one}" for one in defenses]
        done = dmlbench(
            *("run", "--dataset", "tiny", "--recipe", "epochs=1", "--queries", "4", *models),
            *("--attack", "mine.py:Mine", *flags),
        )
        assert done.returncode == 0, done.stderr
        return [line for line in done.stderr.splitlines() if "version" in line]

    def edit(name: str) -> None:
        (tmp_path / name).write_text((tmp_path / name).read_text() + "\n# another version\n")

    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "mine.py").write_text(MINE)
    assert said("01", "own.py:Own") == []
    edit("mine.py")
    (line,) = said("0", "none")
    assert line == (
        "warning: the code of mine has changed since N/A[R] (seed 1), OWN (seeds 0 and 1) was "
        "measured with it: tables show both versions under one name, so measure again, or give the "
        "new version a name of its own"
    )
    edit("own.py")
    attack, training = said("0", "own.py:Own")  # the numbers of seed 1 are of the old attack
    assert attack == line.replace("seeds 0 and 1", "seed 1")
    assert training == (
        "warning: the code of OWN has changed since it was trained with seed 1: tables show one "
        "mean over both versions, so train with these again, or give the new version a name of "
        "its own"
    )
    assert said("01", "own.py:Own") == []
    text = (tmp_path / "mine.py").read_text()
    edit("mine.py")
    assert said("01", "own.py:Own", flags=("--resume", "always")) == []  # nothing is measured
    assert said("0", "own.py:Own", flags=("--shard", "1/2")) == [
        line.replace("seeds 0 and 1", "seed 1")
    ]  # seed 0 of the other model is measured by the other shard
    (tmp_path / "mine.py").write_text(text)
    (after,) = said("0", "own.py:Own")
    assert "(seed 0) that tables show are of another version of mine, which was measured" in after


def test_two_versions_of_a_network_are_warned_of(attacked: Run, tmp_path: Path) -> None:
    said = []
    for label in ("old", "old", "new"):
        if label == "new":
            nets = tmp_path / "nets.py"
            nets.write_text(nets.read_text() + "\n# another version\n")
        done = attacked("rounded", "--label", label, "--queries", "4")
        assert done.returncode == 0, done.stderr
        said += [line for line in done.stderr.splitlines() if "has changed" in line]
    assert said == [
        "warning: the code of nets.py:rounded has changed since old (seed 0) was measured with it: "
        "tables show both versions under one name, so measure again, or give the new version a "
        "name of its own"
    ]
