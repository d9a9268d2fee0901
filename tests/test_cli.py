"""The command line through real processes, in empty folders, with a third-party plugin."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dmlbench import __version__
from dmlbench.core.protocol import ERS_ATTACKS
from dmlbench.defenses.base import DEFENSES
from dmlbench.sweep.requests import parse_all
from tests import synthetic
from tests.command import FIRST, Run, metrics, refused
from tests.fork_server import environment


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


def test_a_folder_whose_name_is_no_text_is_refused_first(dmlbench: Run, tmp_path: Path) -> None:
    """A byte that is no UTF-8 comes as a lone surrogate."""
    for flag in ("--results", "--leaderboards"):
        refused(dmlbench(*FIRST, flag, "r\udcff"), flag, "has letters that are no UTF-8")
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    "settings",
    [
        {"PYTHONIOENCODING": "cp1252"},
        pytest.param({"PYTHONIOENCODING": "latin-1"}, marks=pytest.mark.slow),
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0"},  # ASCII, and bytes that are none are passed on
    ],
)
def test_an_output_that_lacks_letters_has_marks_in_their_place(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    ascii_alone = settings.get("PYTHONIOENCODING", "ascii") == "ascii"
    synthetic.write(tmp_path / "results.csv", synthetic.model())
    for arguments in (["show", "--results", "."], ["show", "--help"]):
        done = subprocess.run(
            [sys.executable, "-m", "dmlbench", *arguments],
            env=environment() | settings,
            cwd=tmp_path,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
        assert b"?" in done.stdout or not ascii_alone or "--help" in arguments


def test_a_folder_that_was_deleted_under_a_command_is_named(tmp_path: Path) -> None:
    code = (
        "import os, sys; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')\n"
        "from dmlbench.cli.main import main; main(['data', 'verify', 'folder:root=photos'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    refused(done, "the current folder was deleted: no such file or directory")


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
        (["--defense", "hm", "--attack", "ca+", "--seed", "9" * 20], ["above 922", "the largest"]),
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


def test_two_configs_are_refused(dmlbench: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text("defense: hm\nattack: ca+\n")
    two = ("--config", "a.yaml", "--config", "b.yaml")
    refused(dmlbench("run", *two, "--dry-run"), "--config is given 2 times (a.yaml, b.yaml)")


def test_each_recipe_counts_and_a_second_data_set_or_network_is_refused(
    dmlbench: Run, tmp_path: Path
) -> None:
    def shown(*flags: str) -> list[str]:
        done = dmlbench(*FIRST, *flags, "--dry-run", "--json")
        assert done.returncode == 0, done.stderr
        return [record["training"] for record in json.loads(done.stdout)]

    together = shown("--recipe", "epochs=2,pairs=4")
    assert shown("--recipe", "epochs=2", "--recipe", "pairs=4") == together != shown()
    (tmp_path / "a.yaml").write_text("recipe: {epochs: 2, pairs: 4}\n")
    assert shown("--config", "a.yaml") == together
    twice = ("--recipe", "epochs=2", "--recipe", "epochs=3")
    refused(dmlbench(*FIRST, *twice, "--dry-run"), "epochs is given twice")
    refused(dmlbench(*FIRST, "--dataset", "fashion"), "--dataset is given 2 times (tiny, fashion)")
    refused(dmlbench(*FIRST, "--model", "c2f2", "--model", "lenet"), "--model is given 2 times")
    refused(dmlbench("attack", "--model", "c2f2", "--model", "lenet"), "--model is given 2 times")
    sets = ("--dataset", "tiny", "--dataset", "fashion")
    for verb in (("attack",), ("compare", "a", "b"), ("submit", "hm"), ("verify", "b.zip")):
        refused(dmlbench(*verb, *sets), "--dataset is given 2 times (tiny, fashion)")


def test_other_weights_in_a_file_of_the_same_name_are_warned_of(
    attacked: Run, tmp_path: Path
) -> None:
    """Tables show only one of them."""
    for _ in range(2):
        assert "are stored under the name" not in attacked("rounded").stderr
    linear = torch.nn.Linear(64, 16).state_dict()
    torch.save({f"backbone.2.{name}": value for name, value in linear.items()}, tmp_path / "w.pt")
    said = "warning: results of another network are stored under the name 'w'"
    assert said in attacked("rounded").stderr


def test_attack_measures_any_checkpoint_and_draws_it(
    dmlbench: Run, tmp_path: Path, measured_none: Path
) -> None:
    trained = metrics(measured_none)
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
    assert again.returncode == 1
    assert "Traceback" not in again.stderr
    assert set(metrics(alone)["label"]) == {"Mine"}
    yours = dmlbench("attack", "--checkpoint", "mine.safetensors", "--dataset", "tiny", "--label",
                     "Yours", "--attack", "ca+", cwd=alone)  # fmt: skip
    assert "'Mine', seed 0, are now those of 'Yours', seed 0" in yours.stderr
    assert set(metrics(alone)["label"]) == {"Yours"}
    drawn = {p.parent.name for p in (alone / "results" / "adversarial").rglob("query-00000.png")}
    assert [name.rpartition("-")[0] for name in sorted(drawn)] == ["ca-plus", "ca-plus", "es"]
    refused(dmlbench("attack", "--checkpoint", "absent.pt", "--dataset", "tiny",
                     "--attack", "ca+", cwd=alone), "absent.pt does not exist")  # fmt: skip
    other = dmlbench("attack", "--checkpoint", "mine.safetensors", "--dataset", "tiny", "--model",
                     "c2f2", "--attack", "ca+", cwd=alone)  # fmt: skip
    refused(other, "not fit the network c2f2: ", "; another network is named with --model")
