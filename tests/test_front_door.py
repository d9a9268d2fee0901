"""Answers of a fresh clone: show and compare of CSVs, completion, doctor; and sweeps in order."""

from __future__ import annotations

import json
import math
import os
import random
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from dmlbench.analysis.csv_files import read_tidy
from dmlbench.attacks.base import ATTACKS
from dmlbench.cli.completion import _items
from dmlbench.cli.main import main
from dmlbench.core.naming import by_number
from dmlbench.datasets.base import DATASETS
from dmlbench.defenses.base import DEFENSES
from dmlbench.metrics.ers import ers
from dmlbench.report.columns import in_order
from dmlbench.zoo.registry import models
from tests.synthetic import FULL, model, write


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results folder that holds a CSV and no cell."""
    cells = [*model(label="A"), *model(FULL | {"CA+": 30.0}, label="B", seed=0)]
    write(tmp_path / "results" / "committed.csv", cells)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_show_reads_the_csvs_of_a_fresh_clone(clone: Path) -> None:
    shown = run("show", "tiny")
    assert shown.exit_code == 0, shown.output
    assert "30.0 [29.0, 31.0]" in shown.output
    assert "A" not in run("show", "--where", "label=B", "--pivot", "label:metric").output.split()
    records = json.loads(run("show", "--json", "--where", "metric=CA+").output)
    assert [record["value"] for record in records] == [10, 30]
    assert run("show", "cub").exit_code == 2


def test_a_score_is_shown_without_the_columns_that_it_is_drawn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "results" / "committed.csv", model(FULL | {"ERS": ers(FULL)}))
    shown = run("show", "--where", "metric=ERS").output
    assert "ERS ↑" in shown
    assert f"{ers(FULL):.1f} [" in shown
    assert "CA+" not in shown
    assert "R@1" not in shown


def test_compare_of_csvs_has_the_interval_of_independent_numbers(clone: Path) -> None:
    done = run("compare", "A", "B", "--json")
    assert done.exit_code == 0, done.output
    assert "count as independent" in done.stderr
    (found,) = [one for one in json.loads(done.stdout) if one["metric"] == "CA+"]
    assert found["difference"]["value"] == 20
    assert found["difference"]["low"] == pytest.approx(20 - math.sqrt(2))
    assert found["difference"]["high"] == pytest.approx(20 + math.sqrt(2))
    assert found["favours"] == "B"
    refused = run("compare", "A", "missing")
    assert refused.exit_code == 2
    assert "nothing was measured of 'missing'" in refused.stderr


def test_models_of_the_zoo_are_compared_by_their_own_rows(clone: Path) -> None:
    done = run("compare", "fashion-mini/none", "fashion-mini/hm", "--json")
    assert done.exit_code == 0, done.output
    held = {name: read_tidy(models()[f"fashion-mini/{name}"].rows) for name in ("none", "hm")}
    a, b = (
        next(r["value"] for r in rows if r["metric"] == "CA+" and r["suite"] == "strict")
        for rows in held.values()
    )
    (found,) = [
        one for one in json.loads(done.stdout) if (one["metric"], one["suite"]) == ("CA+", "strict")
    ]
    assert (found["a"], found["b"]) == (a, b)


def test_a_name_of_several_models_is_refused_with_their_weights(clone: Path) -> None:
    write(clone / "results" / "more.csv", model(label="A", recipe="epochs=9"))
    refused = run("compare", "A", "B")
    assert refused.exit_code == 2
    assert "is several models: name one by its weights" in refused.stderr
    assert "epochs=9" in refused.stderr


def test_sweeps_sort_by_number() -> None:
    right = ["CA+ (eps=2/255)", "CA+ (eps=4/255)", "CA+ (eps=16/255)", "CA+ (steps=4)"]
    mixed = random.Random(0).sample(right, len(right))
    assert sorted(mixed, key=by_number) == right
    assert in_order({*mixed, "ERS"}) == [*right, "ERS"]
    assert sorted(["hm:eta=32", "hm:eta=8"], key=by_number) == ["hm:eta=8", "hm:eta=32"]
    assert sorted(["b2", "a10", "a9"], key=by_number) == ["a10", "a9", "b2"]  # names stay text


@given(st.lists(st.text("a=/,.:1 2", max_size=8)))
def test_texts_of_any_kind_have_an_order(texts: list[str]) -> None:
    assert sorted(texts, key=by_number) == sorted(sorted(texts), key=by_number)


def test_specs_are_completed_from_the_name_to_the_value() -> None:
    def after(registry: object, begun: str) -> list[str]:
        return [item.value for item in _items(registry, begun)]  # type: ignore[arg-type]

    assert after(DEFENSES, "h") == ["head", "hm"]
    assert after(DEFENSES, "hm:so") == ["hm:source="]
    assert after(DEFENSES, "hm:source=ran") == ["hm:source=random"]
    assert "hm:source=random,eta=" in after(DEFENSES, "hm:source=random,")
    assert "hm:source=random,source=" not in after(DEFENSES, "hm:source=random,")
    assert "es:optimizer=apgd" in after(ATTACKS, "es:optimizer=")
    assert after(DATASETS, "folder:ro") == ["folder:root="]
    assert after(DEFENSES, "nothing:x") == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("line", "breaks", "replies"),
    [
        ("dmlbench ru", ":=", ["run"]),
        ("dmlbench run --defense ", ":=", ["acap", "act", "amd"]),
        ("dmlbench run --defense hm:so", ":=", ["source="]),  # bash replaces "so" alone
        ("dmlbench run --defense hm:so", "", ["hm:source="]),
        ("dmlbench run --defense hm:source=ran", ":=", ["random"]),
        ("dmlbench run --seed 1 --defense hm:ics=0,source=har", ":=", ["hardest"]),
    ],
)
def test_bash_completes_the_part_that_it_replaces(
    line: str, breaks: str, replies: list[str]
) -> None:
    program = Path(sys.executable).with_name("dmlbench")
    script = (
        'eval "$(_DMLBENCH_COMPLETE=bash_source "$PROGRAM")"; compopt() { :; }\n'
        f'COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)} COMP_WORDBREAKS="{breaks}"\n'
        '_dmlbench_completion "$PROGRAM"; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    told = {"PROGRAM": str(program)}
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | told, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[: len(replies)] == replies, done.stderr


def test_data_list_answers_for_one_set() -> None:
    said = run("data", "list", "folder").output
    assert "name it with --dataset folder:root=DIR" in said
    assert "folder:root=" in said
    assert "cub" not in said
    assert run("data", "list", "foldr").exit_code == 2


def test_the_doctor_says_it_all_on_one_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    done = run("doctor", "--device", "cpu", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["self-test"]["result"] == "ok"
    assert found["data"].keys() == set(DATASETS.names())
    assert found["data"]["fashion-mini"].startswith("in ")
    assert {"dmlbench", "python", "torch"} <= found["versions"].keys()
    assert found["compute"]["OMP_WAIT_POLICY"] == "passive"
    assert str(Path.home()) + "/.cache" not in done.stdout


def test_a_user_without_a_home_works_in_the_working_folder() -> None:
    """As in a container whose user has no entry in /etc/passwd."""
    code = (
        "import pathlib\n"
        "def home(): raise RuntimeError('Could not determine home directory.')\n"
        "pathlib.Path.home = home\n"
        "from dmlbench.cli import doctor\n"
        "from dmlbench.datasets.files.places import HOME\n"
        "print(HOME, doctor._home(HOME / 'x'), doctor._home(pathlib.Path('/a')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [".cache/dmlbench", ".cache/dmlbench/x", "/a"]


def test_the_doctor_says_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    done = run("doctor", "--device", "cuda:99")
    assert done.exit_code == 1
    assert "active" in done.output  # as the user has set it
    assert "failed: UserError: --device cuda:99 cannot be used" in done.output
    assert len(done.output.splitlines()) < 50
