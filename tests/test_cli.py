"""The command line through real processes, in empty folders, with a third-party plugin."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from dmlbench import __version__
from dmlbench.common.hashing import sealed
from dmlbench.core.protocol import ERS_ATTACKS
from dmlbench.defenses.base import DEFENSES
from dmlbench.sweep.requests import parse_all
from tests import synthetic
from tests.faults import PATIENCE
from tests.outside import DEFENSE
from tests.zygote import Zygote, environment

Run = Callable[..., "subprocess.CompletedProcess[str]"]
FIRST = ("run", "--dataset", "tiny", "--defense", "hm", "--attack", "ca+")


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One line on standard error, exit code 2, no traceback."""
    lines = [x for x in done.stderr.strip().splitlines() if "plugin attack" not in x]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def metrics(folder: Path) -> pd.DataFrame:
    """The tidy CSV without what may differ between runs: times."""
    return pd.read_csv(folder / "results" / "results.csv").drop(columns=["started", "seconds"])


def test_help_and_version(dmlbench: Run) -> None:
    assert "dmlbench run --defense hm --attack ca+" in dmlbench("--help").stdout
    assert "dmlbench run --defense all" in dmlbench("run", "-h").stdout
    assert __version__ in dmlbench("--version").stdout


def test_list_shows_everything_and_warns_of_a_broken_plugin(dmlbench: Run) -> None:
    done = dmlbench("list")
    assert done.returncode == 0
    for word in ("ca+", "ca-", "hm", "none", "fashion-mini", "c2f2", "lenet", "tiny"):
        assert f"  {word}  " in done.stdout
    assert "reports CA+ in % (higher is better)" in done.stdout
    assert "  CA+: Percentile rank that the candidate reaches: 50 is untouched" in done.stdout
    assert "w=1  number of queries" in done.stdout
    assert "plugin attack 'absent' (no_such_module:Attack) is left out" in done.stderr


def test_list_json(dmlbench: Run) -> None:
    listed = json.loads(dmlbench("list", "attacks", "--json").stdout)
    (entry,) = [e for e in listed["attacks"] if e["name"] == "ca-"]
    assert entry["columns"] == [{"name": "CA-", "unit": "%", "better": "lower"}]
    assert {p["name"] for p in entry["parameters"]} >= {"eps", "alpha", "steps", "w"}
    assert "@inproceedings" in entry["paper"]["bibtex"]
    assert list(listed) == ["attacks"]


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["run", "--help"]])
def test_quick_commands_import_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from dmlbench.cli.main import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


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


def test_a_folder_whose_name_is_no_text_is_refused_first(dmlbench: Run, tmp_path: Path) -> None:
    """A byte that is no UTF-8 comes as a lone surrogate."""
    for flag in ("--results", "--leaderboards"):
        refused(dmlbench(*FIRST, flag, "r\udcff"), flag, "has letters that are no UTF-8")
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii"])
def test_an_output_that_lacks_letters_has_marks_in_their_place(
    tmp_path: Path, encoding: str
) -> None:
    synthetic.write(tmp_path / "results.csv", synthetic.model())
    for arguments in (["show", "--results", "."], ["show", "--help"]):
        done = subprocess.run(
            [sys.executable, "-m", "dmlbench", *arguments],
            env=environment() | {"PYTHONIOENCODING": encoding},
            cwd=tmp_path,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
        assert b"?" in done.stdout or encoding != "ascii" or "--help" in arguments


def test_all_means_every_registered_one() -> None:
    assert [d.card.name for d in parse_all(("hm", "all"), DEFENSES)] == ["hm", *DEFENSES.names()]


def test_json_output(dmlbench: Run) -> None:
    done = dmlbench(*FIRST, "--recipe", "epochs=1", "--json")
    cells = json.loads(done.stdout)
    (attacked,) = [
        c for c in cells if c["facts"]["kind"] == "attack" and c["about"]["defense"] == "hm"
    ]
    assert attacked["facts"]["attack_values"]["steps"] == 4
    assert attacked["metrics"]["CA+"]["n"] == 40
    assert json.loads(dmlbench("show", "tiny", "--json").stdout) == cells


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--defense", "hmm", "--attack", "ca+"], ["did you mean 'hm'"]),
        (["--defense", "hm", "--attack", "ca"], ["unknown attack 'ca'", "available"]),
        (["--defense", "hm:etta=8", "--attack", "ca+"], ["did you mean 'eta'", "available: "]),
        (["--defense", "hm", "--attack", "ca+:eps=-1"], ["eps must be", ">= 0", "got -1"]),
        (["--defense", "hm", "--attack", "ca+:steps=0"], ["steps must be int >= 1, got 0"]),
        (["--defense", "hm", "--attack", "ca+:w=0"], ["w must be int >= 1, got 0"]),
        (["--defense", "hm", "--attack", "ca+", "--dataset", "cub2"], ["unknown data set"]),
        (["--defense", "hm", "--attack", "ca+", "--model", "c2f3"], ["did you mean 'c2f2'"]),
        (["--defense", "hm", "--attack", "ca+", "--recipe", "epochs=0"], ["epochs must be"]),
        (["--defense", "hm", "--attack", "ca+", "--recipe", "epoch=1"], ["did you mean 'epochs'"]),
        (["--defense", "hm", "--attack", "ca+", "--device", "cuda:99"], ["--device cuda:99"]),
        (["--defense", "hm", "--attack", "ca+", "--model", "nowhere:make"], ["nowhere"]),
        (["--defense", "hm"], ["name an attack", "--suite strict"]),
        (["--defense", "hm", "--attack", "ca+", "--precision", "tf32"], ["tf32 needs a GPU"]),
    ],
    ids=lambda value: " ".join(value[1::2]) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line_and_write_nothing(
    dmlbench: Run, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    refused(dmlbench("run", *arguments), *words)
    assert not list(tmp_path.rglob("*.json"))


METHODS = """
from dataclasses import dataclass, replace
from dmlbench.attacks.candidate import CandidateUp
from dmlbench.core.registry import Card
from dmlbench.defenses.none import NoDefense as Base
def defense(name, **members):
    members = {"__module__": __name__, "card": Card(name, "with a slip"), **members}
    return dataclass(frozen=True, kw_only=True)(type(name.title(), (Base,), members))
Number = defense("number", label=property(lambda self: 5))
Dear = defense("dear", training_cost=property(lambda self: "9"))
@dataclass(frozen=True, kw_only=True)
class Beta(CandidateUp):
    card = Card("beta", "with a slip", version="beta")
@dataclass(frozen=True, kw_only=True)
class Cited(CandidateUp):
    card = Card("cited", "with a slip", paper="Doe 2030")
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--attack", "m.py:Beta"], "the version on its card must be 1, 2, 3, ..., got 'beta'"),
        (["--attack", "m.py:Cited"], "the paper on its card must be a Paper or None"),
        (["--defense", "m.py:Number"], "defense number: its label must be a text, got 5"),
        (["--defense", "m.py:Dear"], "defense dear: its training_cost must be at least 0"),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else None,
)
def test_a_method_whose_facts_have_another_type_is_refused(
    dmlbench: Run, tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "m.py").write_text(METHODS)
    rest = ["--attack", "ca+"] if "--defense" in arguments else ["--defense", "none"]
    refused(dmlbench("run", "--dataset", "tiny", *arguments, *rest), words)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "resnet18:weights=none"], ["resnet18 needs RGB images, got 1 channel"]),
        (["--recipe", "pairs=7000"], ["7000 pairs is larger than the train split, which has 6000"]),
        (["--model", "timm:name=resnet18,weights=none"], ["timm needs RGB images"]),
        (["--precision", "tf32"], ["tf32 needs a GPU"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_dry_run_refuses_what_the_run_refuses(
    dmlbench: Run, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    asked = ("run", "--defense", "none", "--attack", "ca+", *arguments)
    dry = dmlbench(*asked, "--dry-run")
    refused(dry, *words)
    assert not list(tmp_path.iterdir())
    assert dmlbench(*asked).stderr.splitlines()[-1] == dry.stderr.splitlines()[-1]


def test_a_dry_run_refuses_the_folders_that_the_run_refuses(dmlbench: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "prices.csv").write_text("a,b\n1,2\n")
    before = sorted(tmp_path.rglob("*"))
    for flags, words in (
        (["--results", "file"], "not a folder"),
        (["--leaderboards", "file"], "not a folder"),
        (["--results", "file/results"], "cannot be written to"),
        (["--results", "x" * 300], "cannot be written to"),
        (["--results", "r\udcff"], "no UTF-8"),
        (["--results", "full"], "prices.csv lacks the columns"),
    ):
        refused(dmlbench(*FIRST, *flags, "--dry-run"), flags[1][:20].replace("\udcff", ""), words)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_downloads_nothing(dmlbench: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    asked = ("run", "--defense", "none", "--attack", "ca+", "--data-root", "empty", "--dry-run")
    for name in ("mnist", "cifar10"):
        refused(dmlbench(*asked, "--dataset", name), f"{name} is not on this", f"download {name}")
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_a_results_folder_that_cannot_be_written_is_refused_first(
    dmlbench: Run, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    refused(dmlbench(*FIRST, "--results", "file"), "--results file", "not a folder")
    refused(dmlbench(*FIRST, "--leaderboards", "file"), "--leaderboards file", "not a folder")
    refused(dmlbench(*FIRST, "--results", "/proc/dmlbench"), "cannot be written")
    refused(dmlbench("show"), "no results in results", "dmlbench run")
    refused(dmlbench("leaderboard", "--against", "nothing"), "no results", "dmlbench run")


def test_a_data_root_with_a_bad_file_is_refused(dmlbench: Run, tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03")
    refused(dmlbench("run", "--defense", "none", "--attack", "ca+", "--dataset", "fashion",
                     "--data-root", "."), "SHA-256 differs")  # fmt: skip


@pytest.mark.parametrize("how", ["truncated", "flipped", "manifest"])
def test_a_damaged_model_is_named_set_aside_and_trained_again(
    dmlbench: Run, tmp_path: Path, how: str
) -> None:
    arguments = ("run", "--dataset", "tiny", "--defense", "none", "--attack", "ca+",
                 "--recipe", "epochs=1")  # fmt: skip
    dmlbench(*arguments)
    reference = metrics(tmp_path)
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
    dry = dmlbench(*arguments, "--dry-run")
    assert said in dry.stderr
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    done = dmlbench(*arguments)
    assert done.returncode == 0, done.stderr
    assert said in done.stderr
    aside = tmp_path / "results" / "quarantine" / "models" / file.parent.name
    assert f"moved to {aside.relative_to(tmp_path)}" in done.stderr
    assert (aside / file.name).read_bytes() == before[file]
    pd.testing.assert_frame_equal(metrics(tmp_path), reference)


def test_other_weights_under_the_same_name_are_another_cell(dmlbench: Run, tmp_path: Path) -> None:
    arguments = ("run", "--dataset", "tiny", "--defense", "none", "--attack", "ca+")
    dmlbench(*arguments, "--recipe", "epochs=1")
    dmlbench(*arguments, "--recipe", "epochs=2", cwd=tmp_path / "results")
    (here,) = (tmp_path / "results" / "models").glob("*")
    (there,) = (tmp_path / "results" / "results" / "models").glob("*")
    manifest = json.loads((here / "manifest.json").read_text())
    shutil.copy(there / "checkpoint.safetensors", here)
    other = json.loads((there / "manifest.json").read_text())
    (here / "manifest.json").write_text(json.dumps(other))
    refused(dmlbench(*arguments, "--recipe", "epochs=1"), "another training run")
    own = {k: v for k, v in manifest.items() if k != "checksum"}
    (here / "manifest.json").write_text(json.dumps(sealed(own | {"sha256": other["sha256"]})))
    before = set((tmp_path / "results" / "cells").glob("*.json"))
    done = dmlbench(*arguments, "--recipe", "epochs=1")
    assert done.returncode == 0
    assert "ca+ on" in done.stderr  # measured again: the stored row is of other weights
    assert len(set((tmp_path / "results" / "cells").glob("*.json")) - before) == 2
    assert set(metrics(tmp_path)["checkpoint_sha256"]) == {other["sha256"]}  # the old do not stand


def test_a_damaged_cell_is_measured_again(dmlbench: Run, tmp_path: Path) -> None:
    arguments = ("run", "--dataset", "tiny", "--defense", "none", "--attack", "ca+",
                 "--recipe", "epochs=1")  # fmt: skip
    dmlbench(*arguments)
    reference = metrics(tmp_path)
    damaged, other = sorted((tmp_path / "results" / "cells").glob("*.json"))[:2]
    damaged.write_bytes(damaged.read_bytes()[:50])
    outcomes = other.with_suffix(".parquet")
    outcomes.write_bytes(outcomes.read_bytes().replace(b"pandas", b"pandaz", 1))
    assert f"{damaged.name} is damaged" in dmlbench("show").stderr
    again = dmlbench(*arguments)
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


def test_two_configs_are_refused(dmlbench: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text("defense: hm\nattack: ca+\n")
    two = ("--config", "a.yaml", "--config", "b.yaml")
    refused(dmlbench("run", *two, "--dry-run"), "--config is given 2 times (a.yaml, b.yaml)")


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_results(
    dmlbench: Run, zygote: Zygote, tmp_path: Path
) -> None:
    arguments = (*FIRST, "--recipe", "epochs=4", "--threads", "1")
    whole = tmp_path / "whole"
    whole.mkdir()
    dmlbench(*arguments, cwd=whole)
    cut = tmp_path / "cut"
    cut.mkdir()
    for pattern in ("models/*/state.pt", "models/*/manifest.json", "cells/*.json"):
        process = zygote.start(arguments, cut)
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
        chosen = ("--where", f"attack_seed={seed}", "--out", f"{seed}.zip")
        packed = dmlbench("submit", "none", "--by", "Jane", *chosen)
        assert packed.returncode == 0, packed.stderr
        said = "the attacks have seed 5, the training 3" in packed.stdout + packed.stderr
        assert said is differs, packed.stdout + packed.stderr
    verified = dmlbench("verify", "5.zip", "--queries", "2")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "CA+ (attack_seed=5)" in dmlbench("show").stdout
    again = ("reproduce", "none", "--checkpoint", str(folder), "--where", "attack=ca+*")
    done = dmlbench(*again)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "CA+ (attack_seed=5)" in done.stdout
    refused(dmlbench(*again[:2], *again[4:]), "the attacks of the row have seed 5")


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


def test_interrupting_says_that_nothing_is_lost(zygote: Zygote, tmp_path: Path) -> None:
    process = zygote.start((*FIRST, "--recipe", "epochs=2000"), tmp_path)
    deadline = time.monotonic() + 240
    while not list(tmp_path.rglob("state.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    done = process.wait(PATIENCE)
    assert done.returncode == 130
    assert "interrupted; finished work is stored" in done.stderr
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


def test_attack_measures_any_checkpoint_and_draws_it(dmlbench: Run, tmp_path: Path) -> None:
    dmlbench("run", "--dataset", "tiny", "--defense", "none", "--attack", "ca+",
             "--recipe", "epochs=1")  # fmt: skip
    trained = metrics(tmp_path)
    (weights,) = (tmp_path / "results" / "models").glob("*/checkpoint.safetensors")
    alone = tmp_path / "alone"
    alone.mkdir()
    (tmp_path / "all").mkdir()
    shutil.copy(weights, alone / "mine.safetensors")
    done = dmlbench("attack", "--checkpoint", "mine.safetensors", "--dataset", "tiny",
                    "--attack", "ca+", "--attack", "es", "--label", "Mine",
                    "--save-adversarial", "2", cwd=alone)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = metrics(alone)
    assert set(found["label"]) == {"Mine"}
    for name in ("R@1", "CA+"):
        a, b = (t.set_index("metric").loc[name, "value"] for t in (trained, found))
        assert a == b
    whole = dmlbench("attack", "--checkpoint", str(weights.parent), "--json", cwd=tmp_path / "all")
    assert whole.returncode == 0, whole.stderr  # the manifest names data set and network
    cells = json.loads(whole.stdout)
    assert {cell["about"]["suite"] for cell in cells} == {"", "strict"}
    assert {cell["about"]["attack"] for cell in cells} >= {*ERS_ATTACKS, "ERS"}
    named = dmlbench("attack", "--checkpoint", str(weights.parent / "manifest.json"), "--attack",
                     "ca+", "--json", cwd=tmp_path / "all")  # fmt: skip
    for found in (cells, json.loads(named.stdout)):
        (ca,) = (cell for cell in found if cell["about"]["attack"] == "ca+")
        assert (ca["about"]["dataset"], ca["about"]["recipe"]) == ("tiny", "epochs=1")
        assert ca["metrics"]["CA+"]["value"] == trained.set_index("metric").loc["CA+", "value"]
    pictures = sorted((alone / "results" / "adversarial").rglob("*.png"))
    kinds = [p.parent.name.rpartition("-")[0] for p in pictures]
    assert kinds == ["ca-plus", "ca-plus", "es", "es"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)
    again = dmlbench("attack", "--checkpoint", "mine.safetensors", "--dataset", "tiny",
                     "--attack", "ca+", "--attack", "ca+:w=2", "--attack", "broken",
                     "--label", "Mine", "--save-adversarial", "1", cwd=alone)  # fmt: skip
    refused(dmlbench("attack", "--checkpoint", "mine.safetensors", "--dataset", "tiny", "--label",
                     "Yours", "--attack", "ca+", cwd=alone), "are called 'Mine'")  # fmt: skip
    assert again.returncode == 1
    assert "Traceback" not in again.stderr
    assert set(metrics(alone)["label"]) == {"Mine"}
    drawn = {p.parent.name for p in (alone / "results" / "adversarial").rglob("query-00000.png")}
    assert [name.rpartition("-")[0] for name in sorted(drawn)] == ["ca-plus", "ca-plus", "es"]
    refused(dmlbench("attack", "--checkpoint", "absent.pt", "--dataset", "tiny",
                     "--attack", "ca+", cwd=alone), "absent.pt does not exist")  # fmt: skip
    refused(dmlbench("attack", "--checkpoint", "mine.safetensors", "--dataset", "tiny", "--model",
                     "c2f2", "--attack", "ca+", cwd=alone), "does not fit the model")  # fmt: skip
