"""Configs, flags, weights and texts of others: wrong ones are one line of error and run no code."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmlbench.analysis.csv_files import export, read_folder
from dmlbench.cli import options
from dmlbench.common.errors import CellError, UserError
from dmlbench.common.files import write_atomically
from dmlbench.common.hashing import sealed
from dmlbench.common.spreadsheet import guarded, plain
from dmlbench.models.small import C2F2
from dmlbench.report.markdown import escape
from dmlbench.storage import checkpoint
from dmlbench.storage.store import Store
from dmlbench.sweep.run import write_config
from dmlbench.sweep.tasks import new_cell
from tests import trees
from tests.cells import cell, with_facts
from tests.untrusted import call, refused

pytestmark = pytest.mark.usefixtures("telltale", "registries")
RUN = ("run", "--defense", "none", "--attack", "ca+")
DEEP = "defense: " + "[" * 5000
CONFIGS = {
    "tag": ("defense: !!python/object/apply:os.system ['touch ran']\n", "unknown defense"),
    "deep": (DEEP, "nested too deeply"),
    "itself": ("defense: &a [*a]\n", "contains itself"),
    "aliases": ("defense: [&a hm" + ", *a" * 200 + "]\n", "too many aliases"),
    "large": ("# " + "x" * (2 << 20), "larger than 1 MiB"),
    "bytes": (b"\xc3\x28\x80", "not YAML"),
    "control": (b"defense: \x07\n", "not YAML"),
    "escape": ('defense: "\\0"\n', "not text"),
    "unclosed": ("defense: [hm\n", "not YAML"),
    "twice": ("seed: 0\nseed: 1\n", "twice"),
    "spelt twice": ("data-root: a\ndata_root: b\n", "twice"),
    "list": ("- hm\n", "keys and values"),
    "empty": ("", "keys and values"),
    "null": ("defense: hm\nattack: ca+\nmodel: ~\n", "single value, got nothing"),
    "mapping as a key": ("{a: b}: c\n", "a key must be"),
    "several data sets": ("dataset: [fashion, sop]\n", "single value, got a list"),
    "no data set": ("dataset: []\n", "single value, got a list"),
    "list in a list": ("defense: hm\nseed: [[0]]\n", "single value, got a list"),
    "5,000 digits": ("defense: hm\nattack: ca+\nseed: " + "9" * 4000, "Invalid value for '--seed'"),
    "a secret": ("defense: hm\nattack: ca+\nseed: {root: hunter2}\n", "got keys and values"),
    "a folder": ("defense: hm\nattack: ca+\nresults: {folder: out}\n", "got keys and values"),
    "date": ("defense: hm\nattack: ca+\nseed: 2001-99-99\n", "Invalid value for '--seed'"),
    "long": (f"defense: {'x' * 5000}\n", "longer than a line"),
    "many documents": ("defense: hm\n---\ndefense: hm\n", "not YAML"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_is_wrong_is_one_line(name: str) -> None:
    text, word = CONFIGS[name]
    Path("x.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(call("run", "--config", "x.yaml", "--dry-run"), word)


@pytest.mark.parametrize("space", ["\u00a0", "\u3000"])
def test_a_config_may_have_any_space_of_a_folder_name(space: str) -> None:
    path = write_config(Path(), {"defense": ["none"], "attack": ["ca+"], "results": f"r{space}1"})
    done = call("run", "--config", str(path), "--dry-run")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("flag", ["--results=~/out", "--config=x.yaml"])
def test_a_path_may_begin_with_the_home_folder(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "out").touch()
    Path("x.yaml").write_text("results: ~/out\n")
    refused(call(*RUN, flag, "--dry-run"), f"--results {tmp_path}/out cannot", "not a folder")
    assert options.PATH.convert("~no one/out", None, None) == Path("~no one/out")


def test_values_of_a_config_are_the_text_that_stands_there() -> None:
    """YAML alone would read 010 as 8, 1:30 as 90 and 1_0 as 10."""
    for text, word in (("010", "10"), ("1:30", "'1:30'"), ("0x10", "'0x10'")):
        Path("x.yaml").write_text(f"defense: none\nattack: ca+\nseed: {text}\n")
        done = call("run", "--config", "x.yaml", "--dry-run", "--json")
        said = done.output if done.exit_code else str(json.loads(done.output)[0]["seed"])
        assert word in said


@pytest.mark.parametrize("where", ["config", "checkpoint", "csv", "cell", "manifest"])
def test_a_pipe_is_refused_and_not_waited_for(where: str, tmp_path: Path) -> None:
    if where in ("config", "checkpoint"):
        os.mkfifo("pipe.pt")
        arguments = ["run", "--dry-run"] if where == "config" else ["attack", "--attack", "ca+"]
        refused(call(*arguments, f"--{where}", "pipe.pt"), "not a plain file")
        refused(call(*arguments, f"--{where}", "/dev/zero"), "not a plain file")
    elif where == "csv":
        Path("results").mkdir()
        os.mkfifo("results/x.csv")
        refused(call("leaderboard", "--format", "md"), "x.csv", "not a plain file")
    else:
        place = f"models/{'0' * 16}/manifest" if where == "manifest" else f"cells/{'0' * 16}"
        path = Path(f"results/{place}.json")
        path.parent.mkdir(parents=True)
        os.mkfifo(path)
        done = (
            call("compare", "a", "b")
            if where == "cell"
            else call("merge", "results", "--results", "b")
        )
        assert done.exit_code == 2


DIGITS, PATH = "9" * 5000, "x" * 300
BAD_FLAGS = [
    *(["--seed", value] for value in (DIGITS, "nan", "inf", "-1", "1e3", str(2**63))),
    *(["--queries", value] for value in (DIGITS, "nan", "0")),
    *(["--cell-timeout", value] for value in (DIGITS, "nan", "inf", "-inf", "1e300", "0")),
    *(["--ray-gpus", value] for value in ("nan", "inf", DIGITS)),
    *([flag, value] for flag in ("--workers", "--threads") for value in (DIGITS, "9" * 9, "nan")),
    *(["--batch-size", value] for value in (DIGITS, "0", "nan")),
    ["--shard", f"{DIGITS}/{DIGITS}"],
    *(["--attack", f"es:eps={value}"] for value in (DIGITS, "nan", "inf", "1/0", f"1/{DIGITS}")),
    *(["--attack", f"ca+:w={value}"] for value in (DIGITS, "9" * 400, str(2**63), "nan")),
    *(["--recipe", f"lr={value}"] for value in (DIGITS, "nan", "inf", "-1")),
    *(["--recipe", f"epochs={value}"] for value in (DIGITS, "9" * 400, "nan")),
    *([flag, PATH] for flag in ("--config", "--dataset", "--model")),
    ["--model", f"{PATH}.py:make"],
    ["--model", "os:_exit"],
    ["--model", "sys:exit"],
    ["--model", "builtins:print"],
]


@pytest.mark.parametrize("flags", BAD_FLAGS, ids=lambda flags: " ".join(flags)[:40])
def test_a_number_or_a_path_that_cannot_be_is_one_line(flags: list[str]) -> None:
    refused(call(*RUN, "--dry-run", *flags))


@pytest.mark.parametrize("number", [DIGITS, str(2**63), "-1", "every"])
def test_a_number_of_pictures_that_cannot_be_is_one_line(number: str) -> None:
    refused(call("attack", "--model", "lenet", f"--save-adversarial={number}"))


@pytest.mark.parametrize("flag", ["--results", "--leaderboards", "--cache", "--data-root"])
def test_a_path_that_is_too_long_is_one_line(flag: str) -> None:
    dataset = "fashion" if flag == "--data-root" else "folder:root=."
    refused(call(*RUN, "--recipe", "epochs=1", "--dataset", dataset, flag, PATH))


@given(st.text() | st.from_regex(r"\A'*[=+\-@\t\r][0-9 .]*\Z"))
def test_text_in_a_csv_is_no_formula_and_comes_back(text: str) -> None:
    shown = guarded(text)
    assert plain(shown) == text
    if shown[:1] in ("=", "+", "-", "@", "\t", "\r"):
        assert all(math.isfinite(float(part)) or part for part in shown.split(" "))


def test_formulas_and_links_in_results_are_text_in_every_export(tmp_path: Path) -> None:
    store, bad = Store(tmp_path / "results"), '=HYPERLINK("http://x.y","z")'
    one = cell("@SUM", label=bad, defense="+cmd|' /C calc'!A0", model="![i](http://x.y/i.png)")
    store.put(one)
    export(store)
    assert call("leaderboard", "tiny", "--format", "md", "--format", "csv").exit_code == 0
    (record,) = read_folder(store.root)
    assert (record["label"], record["defense"]) == (bad, "+cmd|' /C calc'!A0")
    assert record["metric"] == "@SUM"
    exports = [*store.root.glob("*.csv"), *Path("leaderboards").glob("tiny.csv")]
    assert len(exports) == 4
    for path in exports:
        with path.open(newline="", encoding="utf-8") as file:
            for text in (text for row in csv.reader(file) for text in row):
                assert text[:1] not in ("=", "@"), (path, text)
                assert text[:1] not in ("+", "-") or float(text.split(" ")[0]) <= 0, (path, text)
    board = Path("leaderboards/tiny.md").read_text()
    for markup in ("](http", "![", "http://x.y", "<img"):
        assert markup not in board.split("What the columns mean")[0].replace("\\]", "").replace(
            "\\!", ""
        )


@pytest.mark.parametrize(
    "text", ["[a](http://b)", "![a](b)", "[a][b]", "[a]: http://b", "a](b) [c", "<http://b>"]
)
def test_markdown_has_no_link_that_a_result_brought(text: str) -> None:
    shown = escape(text)
    for markup in ("](", "][", "]:", "![", "://", "<"):
        assert markup not in shown.replace("\\]", "").replace("\\!", "")
    assert escape("HM[S,g_LGA]&ICS") == "HM[S,g_LGA]&ICS"


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.bool])
def test_weights_of_another_kind_are_refused(dtype: torch.dtype) -> None:
    model = C2F2(dim=4).build(1, 8)
    torch.save({name: value.to(dtype) for name, value in model.state_dict().items()}, "w.pt")
    with pytest.raises(UserError, match=f"holds {dtype}, the network computes in torch.float32"):
        checkpoint.load_weights(Path("w.pt"), model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_converted_aloud(dtype: torch.dtype) -> None:
    model = C2F2(dim=4).build(1, 8)
    state = {name: value.to(dtype) for name, value in model.state_dict().items()}
    torch.save(state, "w.pt")
    with pytest.warns(UserWarning, match=f"weights of {dtype} are converted to torch.float32"):
        checkpoint.load_weights(Path("w.pt"), model)
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name].float())


def test_a_link_to_an_export_stays_one(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "results.csv"
    link.symlink_to(tmp_path / "elsewhere" / "mine.csv")  # which is not there yet
    for content in (b"1", b"22"):
        write_atomically(link, content)
        assert link.is_symlink()
        assert (tmp_path / "elsewhere" / "mine.csv").read_bytes() == content
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


MOVES = """
import os
from dataclasses import dataclass
from dmlbench.attacks.base import Attack, Column
from dmlbench.core.registry import Card

@dataclass(frozen=True, kw_only=True)
class Moves(Attack):
    card = Card("moves", "moves the results away")
    columns = (Column("M", "%", "higher"),)
    def goal(self, gallery, index, seed):
        os.rename("results", "moved")
        raise RuntimeError("moved")
"""


def test_a_results_folder_that_moves_during_a_run_is_said(tmp_path: Path) -> None:
    Path("moves.py").write_text(MOVES)
    root = trees.folder(tmp_path / "images", classes=4, each=3)
    done = call("run", "--defense", "none", "--attack", "moves.py:Moves", "--model", "lenet",
                "--dataset", f"folder:root={root},size=32", "--recipe", "epochs=1,pairs=4",
                "--threads", "1")  # fmt: skip
    refused(done, "results", "was moved or deleted during the run")
    assert (tmp_path / "moved" / "models").is_dir()
    assert not list(tmp_path.glob("results/cells/*"))


def test_a_description_that_cannot_be_stored_is_refused_in_the_plan() -> None:
    about = cell().about
    for change in ({"label": " "}, {"suite": "mine"}, {"dataset": "../x"}, {"model": ""}):
        from msgspec.structs import replace

        with pytest.raises(UserError, match=f"cannot be stored.*{next(iter(change))}"):
            new_cell({}, replace(about, **change), {})
    for text in ("a\rb", "a\tb", "\x1b[2J", "\x9b2J", "a\u202eb", "\udcff"):
        with pytest.raises(UserError, match=r"^label .* has a control character") as said:
            new_cell({}, replace(about, label=text, defense=text), {})
        assert str(said.value).isprintable()


@pytest.mark.parametrize("version", ["beta", 1.5, -1, 2**63, True, None])
def test_a_version_that_is_no_whole_number_enters_no_results_folder(
    version: object, tmp_path: Path
) -> None:
    """One such cell could not be put in order with the others."""
    facts = {"attack_version": version}
    with pytest.raises(UserError, match=r"cannot be stored.*attack_version"):
        new_cell(facts, cell().about, {})
    with pytest.raises(CellError, match=r"attack_version"):
        Store(tmp_path / "results").put(with_facts(cell(), **facts))


@pytest.mark.parametrize(
    "findings",
    [{"deciles": {"CA+": [1.0, 2.0]}}, {"deciles": 3}, {"clean": {"CA+": "x"}}, {"collapsed": 1},
     {"mean_cosine": math.nan}],
)  # fmt: skip
def test_findings_that_no_export_could_hold_fail_their_cell(
    findings: dict[str, Any], tmp_path: Path
) -> None:
    from msgspec.structs import replace

    store = Store(tmp_path / "results")
    with pytest.raises(CellError, match="cannot be right"):
        store.put(replace(cell(), findings=findings))
    record = {k: v for k, v in cell().as_json().items() if k != "checksum"}
    if "mean_cosine" not in findings:  # JSON has no NaN
        write_atomically(
            store.path(cell().id), json.dumps(sealed(record | {"findings": findings})).encode()
        )
        assert store.read() == ([], [store.path(cell().id)])
