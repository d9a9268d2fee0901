"""``dmlbench run`` in real processes: rows, failures, damaged files, stops and what is resumed."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from dmlbench.common.hashing import sealed
from tests.command import FIRST, NONE, Run, metrics, refused
from tests.faults import PATIENCE
from tests.fork_server import ForkServer, environment
from tests.outside import DEFENSE


def test_run_trains_attacks_stores_and_answers_at_once(dmlbench: Run, tmp_path: Path) -> None:
    first = dmlbench(*FIRST)
    assert first.returncode == 0, first.stderr
    assert "train HM[S,g_LGA]&ICS" in first.stderr
    for word in ("N/A[R]", "HM[S,g_LGA]&ICS", "R@1 ↑", "mAP@R ↑", "NMI ↑", "CA+ ↑", "["):
        assert word in first.stdout
    for file in ("results/results.csv", "results/wide.csv", "leaderboards/tiny.md"):
        assert file in first.stdout
        assert (tmp_path / file).is_file()
    board = (tmp_path / "leaderboards" / "tiny.md").read_text()
    assert "| HM[S,g_LGA]&ICS | c2f2:dim=8 | triplet-N | 2 |" in board
    exports = {p: p.read_bytes() for p in (tmp_path / "results").glob("*.csv")}
    again = dmlbench(*FIRST)
    assert "train" not in again.stderr
    assert again.stdout == first.stdout
    assert {p: p.read_bytes() for p in exports} == exports
    shown = dmlbench("show")
    assert shown.stdout.strip() in first.stdout
    (tmp_path / "leaderboards" / "tiny.md").unlink()
    assert dmlbench("leaderboard", "--format", "md").returncode == 0
    for _ in range(2):  # a board in the folder of the results is not read as results
        done = dmlbench("leaderboard", "tiny", "--format", "csv", "--leaderboards", "results")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "leaderboards" / "tiny.md").read_text() == board


@pytest.mark.slow
def test_batch_size_and_threads_change_nothing_that_counts(dmlbench: Run, tmp_path: Path) -> None:
    dmlbench(*FIRST, "--attack", "ca-:w=2", "--threads", "1", "--batch-size", "40")
    reference = metrics(tmp_path)
    for name, flags in {"a": ["--batch-size", "7"], "b": ["--threads", "2"]}.items():
        folder = tmp_path / name
        shutil.copytree(tmp_path / "results" / "models", folder / "results" / "models")
        done = dmlbench(*FIRST, "--attack", "ca-:w=2", *flags, cwd=folder)
        assert done.returncode == 0, done.stderr
        found = metrics(folder)
        assert found["cell"].tolist() == reference["cell"].tolist()
        numbers = ["value", "low", "high"]
        assert (found[numbers] - reference[numbers]).abs().max().max() < 0.05


def test_a_broken_attack_is_a_failed_row_and_the_others_go_on(
    dmlbench: Run, tmp_path: Path
) -> None:
    arguments = ("run", "--dataset", "tiny", "--defense", "none", "--recipe", "epochs=1")
    done = dmlbench(*arguments, "--attack", "ca+", "--attack", "broken", "--attack", "tma")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "failed: BR on N/A[R]: RuntimeError: this plugin is broken" in done.stdout
    table = metrics(tmp_path)
    failed = table[table["status"] == "failed"]
    assert failed["attack"].tolist() == ["broken"]
    assert "failed" in (tmp_path / "leaderboards" / "tiny.md").read_text()
    measured = set(table[table["status"] == "ok"]["attack"].dropna())
    assert measured == {"ca+", "tma"}
    again = dmlbench(*arguments, "--attack", "broken")
    assert again.returncode == 1
    assert "this plugin is broken" in again.stderr  # tried again, not remembered as done


@pytest.mark.parametrize("how", ["truncated", "flipped", "manifest"])
def test_a_damaged_model_is_named_set_aside_and_trained_again(
    dmlbench: Run, tmp_path: Path, measured_none: Path, how: str
) -> None:
    reference = metrics(measured_none)
    (file,) = (tmp_path / "results" / "models").glob(
        "*/manifest.json" if how == "manifest" else "*/checkpoint.safetensors"
    )
    content = bytearray(file.read_bytes())
    content[-100] ^= 4
    file.write_bytes(content[:-100] if how == "truncated" else content)
    said = "is damaged" if how == "manifest" else "SHA-256 differs"
    refused(dmlbench("attack", "--checkpoint", str(file.parent), "--dataset", "tiny",
                     "--attack", "ca+"), said, "delete")  # fmt: skip
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    dry = dmlbench(*NONE, "--dry-run")
    assert said in dry.stderr
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    done = dmlbench(*NONE)
    assert done.returncode == 0, done.stderr
    assert said in done.stderr
    aside = tmp_path / "results" / "quarantine" / "models" / file.parent.name
    assert f"moved to {aside.relative_to(tmp_path)}" in done.stderr
    assert (aside / file.name).read_bytes() == before[file]
    pd.testing.assert_frame_equal(metrics(tmp_path), reference)


def test_other_weights_under_the_same_name_are_another_cell(
    dmlbench: Run, tmp_path: Path, measured_none: Path
) -> None:
    dmlbench(*NONE[:-1], "epochs=2", cwd=measured_none / "results")
    (here,) = (tmp_path / "results" / "models").glob("*")
    (there,) = (tmp_path / "results" / "results" / "models").glob("*")
    manifest = json.loads((here / "manifest.json").read_text())
    shutil.copy(there / "checkpoint.safetensors", here)
    other = json.loads((there / "manifest.json").read_text())
    (here / "manifest.json").write_text(json.dumps(other))
    refused(dmlbench(*NONE), "another training run")
    own = {k: v for k, v in manifest.items() if k != "checksum"}
    (here / "manifest.json").write_text(json.dumps(sealed(own | {"sha256": other["sha256"]})))
    before = set((tmp_path / "results" / "cells").glob("*.json"))
    done = dmlbench(*NONE)
    assert done.returncode == 0
    assert "ca+ on" in done.stderr  # measured again: the stored row is of other weights
    assert len(set((tmp_path / "results" / "cells").glob("*.json")) - before) == 2
    assert set(metrics(tmp_path)["checkpoint_sha256"]) == {other["sha256"]}  # the old do not stand


def test_a_damaged_cell_is_measured_again(
    dmlbench: Run, tmp_path: Path, measured_none: Path
) -> None:
    reference = metrics(measured_none)
    damaged, other = sorted((tmp_path / "results" / "cells").glob("*.json"))[:2]
    damaged.write_bytes(damaged.read_bytes()[:50])
    outcomes = other.with_suffix(".parquet")
    outcomes.write_bytes(outcomes.read_bytes().replace(b"pandas", b"pandaz", 1))
    assert f"{damaged.name} is damaged" in dmlbench("show").stderr
    again = dmlbench(*NONE)
    assert again.returncode == 0
    assert again.stderr.count("moved to results/quarantine") == 2
    for file in (damaged, other, outcomes):
        assert (tmp_path / "results" / "quarantine" / file.name).is_file()
    pd.testing.assert_frame_equal(metrics(tmp_path), reference)


def test_a_shard_without_a_model_has_no_board_and_says_so(dmlbench: Run, tmp_path: Path) -> None:
    done = dmlbench(*FIRST, "--shard", "3/3")
    assert done.returncode == 0, done.stderr
    assert "results has no row of tiny, so there is no board" in done.stdout
    assert not list((tmp_path / "leaderboards").iterdir())
    assert dmlbench(*FIRST, "--shard", "3/3", "--json").stdout == "[]\n"


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_results(
    dmlbench: Run, fork_server: ForkServer, tmp_path: Path
) -> None:
    arguments = (*FIRST, "--recipe", "epochs=4", "--threads", "1")
    whole = tmp_path / "whole"
    whole.mkdir()
    dmlbench(*arguments, cwd=whole)
    cut = tmp_path / "cut"
    cut.mkdir()
    for pattern in ("models/*/state.pt", "models/*/manifest.json", "cells/*.json"):
        process = fork_server.start(arguments, cut)
        deadline = time.monotonic() + 60
        while not list((cut / "results").glob(pattern)) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
    assert dmlbench(*arguments, cwd=cut).returncode == 0
    pd.testing.assert_frame_equal(metrics(cut), metrics(whole))


def test_train_is_found_by_run_and_told_apart_by_compare(dmlbench: Run, tmp_path: Path) -> None:
    trained = dmlbench(
        *["train", "--dataset", "tiny", "--defense", "none", "--defense", "hm", "--validate", "2"]
    )
    assert trained.returncode == 0, trained.stderr
    assert "HM[S,g_LGA]&ICS: results/models/" in trained.stdout
    assert trained.stdout.count("checkpoint.safetensors, R@1 ") == 2
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/models/*/*")}
    assert dmlbench(*FIRST).returncode == 0
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/models/*/*")}
    assert after == before
    told = json.loads(dmlbench("compare", "none", "hm", "--json").stdout)
    (ca,) = [one for one in told if one["metric"] == "CA+"]
    row = metrics(tmp_path).query("metric == 'CA+'").set_index("defense")["value"]
    assert ca["difference"]["value"] == pytest.approx(row["hm"] - row["none"])
    table = dmlbench("compare", "none", "hm")
    assert table.stdout.startswith("A = N/A[R]\nB = HM[S,g_LGA]&ICS\n")


FAILS = DEFENSE.replace(
    "        triplets =",
    "        from pathlib import Path\n\n"
    "        if Path('bad').exists():\n            raise RuntimeError('bad')\n        triplets =",
)


def test_a_training_that_failed_is_done_once_it_was_trained(dmlbench: Run, tmp_path: Path) -> None:
    (tmp_path / "near.py").write_text(FAILS)
    near = ("--dataset", "tiny", "--defense", "near.py:NearNegatives", "--recipe", "epochs=1")
    (tmp_path / "bad").touch()
    assert dmlbench("run", *near, "--attack", "ca+").returncode == 1
    (tmp_path / "bad").unlink()
    assert dmlbench("train", *near).returncode == 0
    assert set(metrics(tmp_path)["status"]) == {"ok"}
    done = dmlbench("run", *near, "--attack", "ca+")
    assert done.returncode == 0, done.stderr
    again = dmlbench("run", *near, "--attack", "ca+", "--resume", "only-missing")
    assert again.returncode == 0, again.stderr
    (tmp_path / "bad").touch()  # it cannot be trained a second time
    assert dmlbench("run", *near, "--attack", "ca+", "--resume", "never").returncode == 1


def test_the_seed_of_attacks_is_that_of_the_training_or_in_the_name_of_columns(
    dmlbench: Run, tmp_path: Path
) -> None:
    tiny = ("--dataset", "tiny", "--attack", "ca+", "--attack", "es")
    assert dmlbench("run", *tiny, "--defense", "none", "--seed", "3").returncode == 0
    before = metrics(tmp_path)
    (folder,) = (tmp_path / "results" / "models").iterdir()
    attack = ("attack", "--checkpoint", str(folder), *tiny)
    done = dmlbench(*attack)
    assert "there was nothing to do" in done.stderr, done.stderr  # the cells are those of the run
    done = dmlbench(*attack, "--seed", "5")
    assert done.returncode == 0, done.stderr
    after = metrics(tmp_path)
    pd.testing.assert_frame_equal(after[after["cell"].isin(before["cell"])].reset_index(drop=True),
                                  before)  # fmt: skip
    (wide,) = pd.read_csv(tmp_path / "results" / "wide.csv").to_dict("records")
    assert {"seed", "CA+", "CA+ (attack_seed=5)", "ES:R (attack_seed=5)"} <= wide.keys()
    packed = dmlbench("submit", "none", "--by", "Jane", "--where", "seed=3", "--out", "x.zip")
    refused(packed, "'none' was attacked with the seeds 3, 5", "--where attack_seed=3")
    for seed, differs in (("3", False), ("5", True)):
        chosen = ("--where", f"attack_seed={seed}", "--out", f"{seed} é.zip")
        packed = dmlbench("submit", "none", "--by", "Jane", *chosen)
        assert packed.returncode == 0, packed.stderr
        said = "the attacks have seed 5, the training 3" in packed.stdout + packed.stderr
        assert said is differs, packed.stdout + packed.stderr
        assert packed.stdout.endswith(f"Try it: dmlbench verify '{seed} é.zip'\n")
    verified = dmlbench("verify", "5 é.zip", "--queries", "2")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "CA+ (attack_seed=5)" in dmlbench("show").stdout
    again = ("reproduce", "none", "--checkpoint", str(folder), "--where", "attack=ca+*")
    done = dmlbench(*again)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "CA+ (attack_seed=5)" in done.stdout
    refused(dmlbench(*again[:2], *again[4:]), "the attacks of the row have seed 5")


def test_weights_of_an_unknown_training_are_one_training_under_any_seed(
    attacked: Run, dmlbench: Run, tmp_path: Path
) -> None:
    """In any order; its name says the seed of an attack that is not 0."""
    for seed in ("1", "0"):
        done = attacked("rounded", "--seed", seed)
        assert done.returncode == 0, done.stderr
        assert ("TMA (attack_seed=1)" in done.stdout) == (seed == "1")
    (wide,) = pd.read_csv(tmp_path / "results" / "wide.csv").to_dict("records")
    assert wide["seed"] == 0
    assert {"R@1", "TMA", "TMA (attack_seed=1)"} <= wide.keys()
    assert wide["TMA"] != wide["TMA (attack_seed=1)"]
    ask = ("reproduce", "w", "--checkpoint", "w.pt", "--allow-code", "--where")
    done = dmlbench(*ask, "attack=tma:attack_seed=1")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_training_ended_at_random_moments_gives_the_same_weights(
    dmlbench: Run, plugin: Path, tmp_path: Path, signal_number: int
) -> None:
    arguments = ["train", "--dataset", "tiny", "--defense", "hm", "--recipe", "epochs=60"]
    dmlbench(*arguments, "--results", "whole")
    draws = random.Random(signal_number)
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-m", "dmlbench", *arguments, "--results", "cut"],
            cwd=tmp_path,
            env=environment(plugin),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(draws.uniform(2, 6))
        process.send_signal(signal_number)
        process.wait()
    assert dmlbench(*arguments, "--results", "cut").returncode == 0
    digests = [
        json.loads(path.read_text())["sha256"] for path in tmp_path.glob("*/models/*/manifest.json")
    ]
    assert len(digests) == 2
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("resume", "again"),
    [("retry-failed", "run again to go on"), ("never", "run again without --resume never to")],
)
def test_interrupting_says_that_nothing_is_lost(
    fork_server: ForkServer, tmp_path: Path, resume: str, again: str
) -> None:
    process = fork_server.start((*FIRST, "--recipe", "epochs=2000", "--resume", resume), tmp_path)
    deadline = time.monotonic() + 240
    while not list(tmp_path.rglob("state.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    done = process.wait(PATIENCE)
    assert done.returncode == 130
    assert f"interrupted; finished work is stored, {again}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_suite_gives_ten_columns_ers_and_the_worst_case(dmlbench: Run, tmp_path: Path) -> None:
    arguments = ("run", "--dataset", "tiny", "--defense", "none", "--recipe", "epochs=2")
    done = dmlbench(*arguments, "--suite", "strict", "--suite", "ers")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "results" / "wide.csv").set_index("suite")
    assert set(table.index) == {"strict", "ers"}
    assert table["ERS"].between(0, 100).all()
    assert table["ERS"].between(table["ERS low"], table["ERS high"]).all()
    for name in ("ES:R", "LTM", "GTM"):
        assert (table["Robust R@1"] <= table[name] + 1e-9).all()
    assert table["R@1"].nunique() == 1  # one benign cell serves both
    board = (tmp_path / "leaderboards" / "tiny.md").read_text()
    assert "suite strict" in board
    assert "suite ers" in board
    tidy = metrics(tmp_path)
    clean = tidy[tidy["metric"].isin(["ES:R", "LTM", "GTM"])]["clean"].unique()
    assert clean == pytest.approx(table["R@1"].iloc[0])  # with eps = 0 they are the benign R@1


def test_a_part_of_the_queries_is_a_row_of_its_own(dmlbench: Run, tmp_path: Path) -> None:
    """Whole and in part: the columns and the board say which is which."""
    arguments = ("run", "--dataset", "tiny", "--defense", "none", "--recipe", "epochs=1",
                 "--attack", "es", "--attack", "ltm", "--attack", "gtm")  # fmt: skip
    assert dmlbench(*arguments).returncode == 0
    done = dmlbench(*arguments, "--queries", "9")
    assert done.returncode == 0, done.stderr
    tidy = metrics(tmp_path).query("attack != ''")
    attacked = tidy[tidy["attack"].notna()]
    counts = attacked.groupby(attacked["queries"].fillna(0))["n"].unique()
    assert counts[9].tolist() == [9]
    assert counts[0].tolist() == [40]
    assert "worst case" in set(attacked[attacked["queries"] == 9]["attack"])
    rows = pd.read_csv(tmp_path / "results" / "wide.csv")
    assert sorted(rows["queries"].fillna(0)) == [0, 9]
    assert rows["R@1"].nunique() == 1  # the benign cell is of all images, and serves both
    board = (tmp_path / "leaderboards" / "tiny.md").read_text()
    assert "| Queries |" in board
    assert "n = 9," in board
    assert "n = 40," in board
    refused = dmlbench(*arguments, "--queries", "40")
    assert refused.returncode == 2
    assert refused.stderr.strip().endswith(
        "--queries 40: the test split has 40 images; leave it out to attack each"
    )
