"""The commands and the code in the documents work as written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from dmlbench.cli.main import main
from scripts import docs
from scripts.reading import pages
from tests.outside import BLOCKS, TEST

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(zip(re.findall(r"`(\w+\.py)`:\n", CONTRIBUTING), BLOCKS, strict=False))
CHECKS = [line for line in CONTRIBUTING.splitlines() if line.startswith("dmlbench check ")]
PAGES = [README, *(path.read_text("utf-8") for path in sorted((ROOT / "docs").rglob("*.md")))]
COMMANDS = dict.fromkeys(  # test_tutorials.py runs those of the tutorials that have no $
    line.removeprefix("$ ").partition("  #")[0]
    for page, begin in [(README, "dmlbench "), *((page, "$ dmlbench ") for page in PAGES)]
    for line in page.splitlines()
    if line.startswith(begin)
)
SWEEP = re.compile(r"```yaml\n(.*?)```", re.DOTALL)
NOISE = re.compile(r"title=\"noise.py\"\n(.*?)```", re.DOTALL)


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("command", COMMANDS)
def test_documented_commands_parse(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each documented command gets as far as a results folder that cannot be."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_text(SWEEP.findall("".join(PAGES))[0])
    (tmp_path / "noise.py").write_text(NOISE.findall(README)[0])
    (tmp_path / "nets.py").write_text("def make(): ...\n")
    (tmp_path / "results").symlink_to(ROOT / "results")
    verb, *arguments = shlex.split(command)[1:]
    if verb in ("list", "data", "check", "zoo", "doctor", "reproduce", "verify"):
        # has no results, or may download or train
        if verb == "verify":
            (tmp_path / arguments[0]).write_text("")
        parsed = main.commands[verb]
        while isinstance(parsed, click.Group):
            verb, *arguments = arguments
            parsed = parsed.commands[verb]
        assert parsed.make_context(verb, arguments)
        return
    (tmp_path / "file").write_text("")
    arguments += ["--results", str(tmp_path / "file")]
    done = CliRunner().invoke(main, [verb, *arguments])
    assert re.search(
        "not a folder|Not a directory|no results|nothing was measured|not on this machine",
        done.output,
    ), done.output


def test_the_ci_runs_the_readmes_test_line() -> None:
    lines = [line for line in README.splitlines() if re.search(r"venv \.venv.*pytest$", line)]
    assert len(lines) == 1
    assert "grep -m1 'venv .venv.*pytest$' README.md" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("command", CHECKS)
def test_the_methods_in_contributing_pass_their_checks(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file as it is written there, checked by the line that stands below it."""
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output


def test_contributing_shows_a_whole_one_of_each_kind() -> None:
    shown = [spec.partition(":")[0] for command in CHECKS for spec in shlex.split(command)[2:]]
    assert shown == list(FILES) == ["towards.py", "near.py", "stripes.py", "nets.py"]


@pytest.mark.usefixtures("registries")
def test_the_test_in_contributing_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "towards.py").write_text(FILES["towards.py"])
    monkeypatch.syspath_prepend(str(tmp_path))
    found: dict[str, Any] = {}
    exec(TEST, found)
    found["test_towards"]()


RUNS = [line for line in CONTRIBUTING.splitlines() if line.startswith("dmlbench run ")]


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("command", RUNS)
def test_the_runs_in_contributing_parse(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gets as far as a results folder that cannot be."""
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(main, [*shlex.split(command)[1:], "--results", "file"])
    assert re.search("not a folder|Not a directory", done.output), done.output


def test_the_pages_of_the_results_are_in_the_site_with_links_that_lead_somewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docs, "BUILT", tmp_path)
    docs.write()
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for source in pages():
        place = docs.place_in_site(source)
        assert f": {place.as_posix()}\n" in nav
        text = (tmp_path / place).read_text(encoding="utf-8")
        for _, _, target, anchor in docs.LINK.findall(text):
            if "://" in target:
                continue
            there = tmp_path / place.parent / target if target else tmp_path / place
            assert there.is_file(), target
            heads = re.findall(r"^#+ (.*)$", there.read_text("utf-8"), re.M) if anchor else []
            slugs = {re.sub(r"[^a-z0-9-]", "", head.lower().replace(" ", "-")) for head in heads}
            assert not anchor or anchor[1:] in slugs
    plots = tmp_path / "results" / "fashion-mini" / "plots"
    assert (plots / "fashion-mini-suites.png").is_file()
