"""The tutorials are run as they are written, on few images: files, Python, commands, output."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from dmlbench.attacks import radius
from dmlbench.cli.main import main
from dmlbench.datasets.base import RetrievalData, Split
from dmlbench.datasets.fashion import FashionMini
from dmlbench.report import style

ROOT = Path(__file__).parent.parent
TUTORIALS = {path.stem: path for path in sorted((ROOT / "docs" / "tutorials").glob("*.md"))}
BLOCK = re.compile(r"^```(\w+)(?: title=\"(.+?)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EACH = 8  # images per class


@pytest.fixture
def _few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    load = FashionMini.load

    def few(self: FashionMini, *places: Any) -> RetrievalData:
        whole = load(self, *places)
        return RetrievalData(*map(_few, (whole.train, whole.test)))

    monkeypatch.setattr(FashionMini, "load", few)
    monkeypatch.setattr(FashionMini, "known_digest", None)
    monkeypatch.setattr(style, "FORMATS", ("pdf",))  # of three
    monkeypatch.setattr(radius, "STEPS", 4)  # of 50


def _few(split: Split) -> Split:
    chosen = np.concatenate([np.flatnonzero(split.labels == c)[:EACH] for c in range(10)])
    return Split(split.images[chosen], split.labels[chosen])


@pytest.fixture
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder, as the user's; modules that are imported from it are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


def command(line: str) -> str:
    """Run a line of a shell in this process; return what it prints."""
    name, *words = shlex.split(line)
    if name == "python":
        exec(compile(Path(words[0]).read_text(), words[0], "exec"), {"__name__": "__main__"})
        return ""
    assert name == "dmlbench", line
    found = [sorted(map(str, Path().glob(word))) if "/*" in word else [word] for word in words]
    done = CliRunner().invoke(main, [word for words in found for word in words])
    assert done.exit_code == 0, done.output
    return done.output


def words(text: str) -> set[str]:
    """The words of an output, without its numbers, which few images change."""
    return {word for word in text.split() if not re.fullmatch(r"[-+\d.,\[\]─]+", word)}


@pytest.mark.usefixtures("_few_images", "_workplace", "registries")
@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_works_as_written(name: str) -> None:
    printed, names = "", {"__name__": "__main__"}
    ran = 0
    for language, title, code in BLOCK.findall(TUTORIALS[name].read_text("utf-8")):
        if title:
            Path(title).write_text(code)
        elif language == "python":
            exec(compile(code, name, "exec"), names)
            ran += 1
        elif language == "sh":
            printed = "".join(map(command, code.splitlines()))
            ran += 1
        elif language == "text" and printed:
            assert words(code) <= words(printed), words(code) - words(printed)
        elif language == "latex":
            written = "".join(path.read_text() for path in Path("paper").glob("*.tex"))
            assert all(line in written for line in code.splitlines())
    assert ran >= 2


@pytest.mark.usefixtures("_few_images", "_workplace", "registries")
def test_the_python_of_the_readme_works_as_written() -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    blocks = BLOCK.findall((ROOT / "README.md").read_text("utf-8"))
    for _, title, code in [block for block in blocks if block[0] == "python"]:
        exec(compile(code, title or "README.md", "exec"), names)
    assert names["report"]["CA+"].low <= names["report"]["CA+"].value
