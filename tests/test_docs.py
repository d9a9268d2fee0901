"""The commands and the code in the documents work as written."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from dmlbench.attacks.base import ATTACKS, Gallery
from dmlbench.cli.main import main
from dmlbench.compute.embedding import embed
from dmlbench.core.protocol import Threat
from dmlbench.datasets.base import RetrievalData
from dmlbench.models.small import C2F2

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.partition("#")[0] for line in README.splitlines() if line.startswith("dmlbench ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_commands_parse(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each documented command gets as far as a results folder that cannot be."""
    monkeypatch.chdir(tmp_path)
    sweep = re.findall(r"`(\w+: \[.*?\])`", README)
    assert sweep
    (tmp_path / "sweep.yaml").write_text("\n".join([*sweep, "attack: ca+"]))
    verb, *arguments = shlex.split(command)[1:]
    if verb not in ("list", "data"):
        (tmp_path / "file").write_text("")
        arguments += ["--results", str(tmp_path / "file")]
    done = CliRunner().invoke(main, [verb, *arguments])
    if verb in ("list", "data"):
        assert done.exit_code == 0
    else:
        assert re.search(
            "not a folder|Not a directory|no results|nothing was measured", done.output
        ), done.output


def test_the_ci_runs_the_readmes_test_line() -> None:
    lines = [line for line in README.splitlines() if re.search(r"venv \.venv.*pytest$", line)]
    assert len(lines) == 1
    assert "grep -m1 'venv .venv.*pytest$' README.md" in (ROOT / ".ci" / "run").read_text()


def test_the_attack_in_contributing_works(tiny: RetrievalData, tmp_path: Path) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    (tmp_path / "contributed.py").write_text(code)
    sys.path.insert(0, str(tmp_path))
    try:
        from contributed import TowardsAttack  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
        ATTACKS._classes.pop("towards", None)
    model = C2F2(dim=8).build(1, 8).eval().requires_grad_(False)
    images = tiny.evaluation_pixels(torch.from_numpy(tiny.test.images))
    gallery = Gallery(embed(model, images), torch.from_numpy(tiny.test.labels), "N")
    index = torch.arange(len(images))
    found = {}
    for eps in (0.0, 0.3):
        attack = TowardsAttack(eps=eps).resolve(Threat(0.1, 0.05, 6))
        attacked = attack.run(model, images, index, gallery, seed=0)
        found[eps] = attacked.outcomes["TOW:D"].mean()
    assert found[0.3] < found[0.0]
