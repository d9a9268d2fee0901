"""A package outside the repository: listed, run, checked; its slips are refused with a reason."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fork_server import ForkServer
from tests.outside import DATASET, DEFENSE, NETWORK, SLIPS, install

Call = Callable[..., subprocess.CompletedProcess[str]]
RUN = ("run", "--dataset", "tiny", "--defense", "none", "--recipe", "epochs=1", "--threads", "1")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the package ``their`` is installed."""
    return install(tmp_path_factory.mktemp("site"))


@pytest.fixture
def outside(fork_server: ForkServer, site: Path, tmp_path: Path) -> Call:
    """The command line, where the package ``their`` is installed."""
    return lambda *arguments, cwd=tmp_path: fork_server.run(arguments, cwd, 300, site)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results" / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """Spec -> check -> finding, of ``check --json``."""
    return {
        record["spec"]: {finding["check"]: finding for finding in record["findings"]}
        for record in json.loads(done.stdout)
    }


def test_an_installed_attack_is_listed_run_and_checked(outside: Call, tmp_path: Path) -> None:
    listed = json.loads(outside("list", "attacks", "--json").stdout)["attacks"]
    assert "towards" in [entry["name"] for entry in listed]
    done = outside(*RUN, "--attack", "towards:steps=2")
    assert done.returncode == 0, done.stderr
    (row,) = [row for row in rows(tmp_path) if row["metric"] == "TOW:D"]
    assert row["attack"] == "towards:steps=2"
    (cell,) = [
        json.loads(p.read_text()) for p in tmp_path.glob(f"results/cells/{row['cell']}.json")
    ]
    assert len(cell["facts"]["attack_source"]) == 64  # its code is part of its identity
    checked = outside("check", "towards", "their.attacks:TowardsAttack:steps=4")
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count("14 checks: 14 ok") == 2


REASONS = {  # module -> the check that refuses it, and words of the reason
    "draws_in_the_loss": ("randomness", ["torch.randn_like", "PyTorch's global", "could not be"]),
    "draws_targets_by_numpy": ("randomness", ["numpy.random.randint", "NumPy's global"]),
    "reads_a_global_seed": ("randomness", ["two runs with the same seed"]),
    "targets_follow_the_batch": ("batch", ["another loss or outcome", "targets.draw"]),
    "wrong_gradient": ("gradient", ["not that of the loss", "PGD would descend", "autograd"]),
    "mean_over_the_batch": ("batch", ["alone", "no mean or maximum over the batch"]),
    "finds_itself": ("own entry", ["own entry", "finds itself", "gallery.nearest"]),
    "reads_items": ("apart", ["among the items of the gallery", "gallery.queries[index]"]),
    "counts_itself": ("own entry", ["the outcome COUNTS_ITSELF", "finds itself"]),
    "out_of_range": ("outcomes", ["OUT_OF_RANGE is 250% for a query", "within 0 and 100"]),
    "does_the_opposite": ("hurts", ["does nothing", "look at its sign"]),
    "changes_images": ("gradient", ["changes the embeddings it is given"]),
    "holds_everything": ("memory", ["sub makes a tensor", "matrix product"]),
}


def test_every_slip_is_refused_with_its_reason(outside: Call) -> None:
    assert REASONS.keys() == SLIPS.keys()
    specs = {name: f"their.{name}:TowardsAttack" for name in SLIPS}
    done = outside("check", "--json", *specs.values())
    assert done.returncode == 1, done.stderr
    found = findings(done)
    for name, (check, words) in REASONS.items():
        finding = found[specs[name]][check]
        assert finding["passed"] is False, name
        for word in words:
            assert word in finding["reason"], (name, finding["reason"])


def test_an_outcome_out_of_range_is_a_failed_cell(outside: Call, tmp_path: Path) -> None:
    done = outside(*RUN, "--attack", "their.out_of_range:TowardsAttack")
    assert done.returncode == 1, done.stderr
    (row,) = [row for row in rows(tmp_path) if row["metric"] == "OUT_OF_RANGE"]
    assert row["status"] == "failed"
    assert "OUT_OF_RANGE is 250% for a query" in row["error"]


def test_check_prints_a_line_a_check_and_a_summary(outside: Call) -> None:
    done = outside("check", "their.wrong_gradient:TowardsAttack")
    lines = done.stdout.splitlines()
    assert lines[0] == "their.wrong_gradient:TowardsAttack"
    assert "  ok       card" in lines
    assert any(line.startswith("  FAILED   gradient: the gradient is not") for line in lines)
    assert lines[-1] == "14 checks: 13 ok, 1 FAILED"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hmm"], "neither a registered name"),
        (["their.attacks:Toward"], "did you mean 'Towards'"),
        (["their.attacks:PAPER"], "is no attack, defense, data set or network"),
        (["their.attacks:Towards", "--kind", "attack"], "derives from the base"),
        (["absent"], "No module named 'no_such_module'"),  # a plugin that was left out
        (["absent.py:A"], "there is no file absent.py in"),
        (["ca+", "--kind", "defense"], "'ca+' is no defense but of another kind, attack"),
        (["near.py"], "'near.py' is a file: name the class in it too, near.py:ClassName"),
        (["ca+:steps=0"], "steps must be int >= 1"),
    ],
)
def test_what_cannot_be_loaded_is_one_line_and_exit_code_2(
    arguments: list[str], words: str, outside: Call
) -> None:
    done = outside("check", *arguments)
    assert done.returncode == 2, done.stdout
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("warning: plugin")]
    assert line.startswith("error: ")
    assert words in line


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The defense, the data set and the network of CONTRIBUTING.md as files in a folder."""
    code = {"near": DEFENSE, "stripes": DATASET, "nets": NETWORK}
    for name, text in code.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


SWEEP = ("run", "--dataset", "stripes.py:Stripes:noise=20", "--defense",
         "near.py:NearNegatives:eta=1", "--attack", "their.attacks:TowardsAttack:steps=2",
         "--attack", "their.wrong_gradient:TowardsAttack", "--model", "nets.py:make:width=4",
         "--recipe", "epochs=1", "--threads", "1")  # fmt: skip


def test_every_kind_by_reference_from_flags_to_csv_and_back(outside: Call, files: Path) -> None:
    """An attack by module, a defense, a data set and a network by file, in a worker process.

    Then again from the run file.
    """
    done = outside(*SWEEP, "--cell-timeout", "600")
    assert done.returncode == 0, done.stderr
    found = rows(files)
    assert {row["dataset"] for row in found} == {"stripes:noise=20"}
    assert {row["defense"] for row in found} == {"none", "near:eta=1"}
    assert {row["attack"] for row in found} == {"", "towards:steps=2", "wrong_gradient"}
    assert {row["model"] for row in found} == {"nets.py:make:width=4"}
    assert (files / "leaderboards" / "stripes.md").is_file()
    (run,) = (files / "results" / "runs").iterdir()
    asked = run.read_text()
    for reference in ("near.py:NearNegatives:margin", "stripes.py:Stripes:noise=20",
                      "their.wrong_gradient:TowardsAttack:eps"):  # fmt: skip
        assert reference in asked
    refused = outside("run", "--config", str(run))
    assert refused.returncode == 2
    assert "which is code that would be run" in refused.stderr
    again = outside("run", "--config", str(run), "--allow-code")
    assert "0 tasks" in again.stderr or "nothing to do" in again.stderr, again.stderr
    elsewhere = files / "elsewhere"
    elsewhere.mkdir()
    lost = outside("run", "--config", str(run), "--allow-code", cwd=elsewhere)
    assert lost.returncode == 2
    assert "there is no file stripes.py in" in lost.stderr


def test_a_row_of_a_defense_from_a_file_is_handed_in_and_verified_without_its_code(
    outside: Call, files: Path
) -> None:
    """However it is named, and whether its class is known where the bundle is looked at."""
    defense = "near.py:NearNegatives:eta=1"
    attacks = ("--attack", "tma:steps=2", "--attack", "their.wrong_gradient:TowardsAttack")
    run = ("run", "--dataset", "tiny", "--defense", defense, *attacks)
    assert outside(*run, "--recipe", "epochs=1", "--threads", "1").returncode == 0
    (label,) = {row["label"] for row in rows(files) if row["defense"] != "none"}
    empty = files / "empty"
    empty.mkdir()
    for name in (defense, label):
        packed = outside("submit", name, "--by", "Jane Doe", "--out", "near.zip")
        assert packed.returncode == 0, packed.stderr
        changes = "\n  the defense is code from outside\n  the recipe has epochs=1\n"
        assert changes in packed.stdout
        unknown = "left out: wrong_gradient .*: an attack of a file or a plugin is not known here"
        assert re.search(unknown, packed.stderr)
        done = outside("verify", str(files / "near.zip"), cwd=empty)
        assert done.returncode == 0, done.stdout


def test_a_changed_file_gives_new_numbers(outside: Call, files: Path) -> None:
    sweep = ("run", "--dataset", "tiny", "--defense", "near.py:NearNegatives:eta=1", "--attack",
             "own.py:TowardsAttack", "--recipe", "epochs=1", "--threads", "1")  # fmt: skip
    install(files / "site")
    code = (files / "site" / "their" / "wrong_gradient.py").read_text()
    (files / "own.py").write_text(code)

    def to_do() -> set[tuple[str, str]]:
        done = outside(*sweep, "--dry-run", "--json")
        assert done.returncode == 0, done.stderr
        return {(r["task"], r["status"]) for r in json.loads(done.stdout) if r["runs"]}

    assert outside(*sweep).returncode == 0
    assert to_do() == set()
    (files / "own.py").write_text(code + "\n# another attack\n")
    assert to_do() == {("wrong_gradient", "stale")}
    (files / "own.py").write_text(code)
    assert to_do() == set()
    (files / "near.py").write_text(DEFENSE + "\n# another defense\n")
    assert ("training", "to do") in to_do()
