"""Every way to install the package gives exactly the source that the folders hold."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import jedi
import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"benchmark": "dmlbench", "attacks": "dmlbench/attacks", "defenses": "dmlbench/defenses"}
BUILT_FROM = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "src", *FOLDERS)
NEW_ATTACK = """
from dataclasses import dataclass
from dmlbench.attacks.base import ATTACKS, Attack, Column
from dmlbench.core.registry import Card

@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class Dropped(Attack):
    card = Card("dropped", "a file that was put into attacks/ after the installation")
    columns = (Column("DR", "%", "higher"),)
    def goal(self, gallery, index, seed):
        raise NotImplementedError
"""


def output(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Run a command that must succeed; return its output."""
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def source_files() -> dict[str, bytes]:
    """Every file of the package folders that git does not ignore, at its place in the wheel."""
    files = {}
    for line in output(
        "git", "ls-files", "--cached", "--others", "--exclude-standard", *FOLDERS
    ).splitlines():
        folder, _, rest = line.partition("/")
        if (ROOT / line).is_file() and not (ROOT / line).is_symlink():
            files[f"{FOLDERS[folder]}/{rest}"] = (ROOT / line).read_bytes()
    return files


def archive(path: Path, prefix: str = "") -> Path:
    """``git archive`` of the working tree as it is, new files included; the suffix names the kind.

    The tree is written by way of an index of its own, so the repository's stays as it is.
    """
    index = {"GIT_INDEX_FILE": str(path.with_name("index"))}
    output("git", "add", "--", *BUILT_FROM, **index)
    tree = output("git", "write-tree", **index).strip()
    output("git", "archive", f"--prefix={prefix}", "--output", path, tree)
    return path


def built(kind: str, folder: Path) -> Path:
    """Make the source that a user gives to pip: a folder, or an archive of it."""
    if kind in ("tar.gz", "zip"):
        return archive(folder / f"dmlbench.{kind}", prefix="dmlbench/")
    output("tar", "xf", archive(folder / "a.tar"), cwd=folder)
    if kind == "folder":
        return folder
    output(sys.executable, "-m", "build", "--no-isolation", "--sdist", folder)
    return next((folder / "dist").glob("*.tar.gz"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "folder", "sdist", "tar.gz"])
def test_the_wheel_holds_every_source_file_and_no_other(kind: str, tmp_path: Path) -> None:
    """A .zip has no links: pip unpacks each as a file that holds the name of its target."""
    source = built(kind, tmp_path)
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path / "wheel")
    output(sys.executable, "-m", "pip", "wheel", *options, source)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = [name for name in packed.namelist() if ".dist-info/" not in name]
        assert {name: packed.read(name) for name in names} == source_files()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a clone in a folder named dmlbench, the Python it is installed in by ``pip install -e``)."""
    parent = tmp_path_factory.mktemp("parent")
    output("tar", "xf", archive(parent / "a.tar", prefix="dmlbench/"), cwd=parent)
    venv.create(parent / "venv", with_pip=False)
    python = parent / "venv" / "bin" / "python"
    command = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "-e")
    output(*command, parent / "dmlbench")
    (packages,) = (parent / "venv" / "lib").glob("*/site-packages")
    # torch and the rest from the environment of the tests, after what is installed here
    others = [entry for entry in sys.path if entry.endswith("site-packages")]
    (packages / "zz.pth").write_text("\n".join(others))
    return parent / "dmlbench", python


@pytest.mark.slow
def test_a_clone_named_as_the_package_does_not_hide_it(clone: tuple[Path, Path]) -> None:
    folder, python = clone
    code = "import dmlbench.attacks.base as base; print(base.__file__)"
    found = output(python, "-c", code, cwd=folder.parent).strip()
    assert Path(found).resolve() == folder / "attacks" / "base.py"


@pytest.mark.slow
def test_a_new_attack_is_seen_without_another_installation(clone: tuple[Path, Path]) -> None:
    folder, python = clone
    (folder / "attacks" / "dropped.py").write_text(NEW_ATTACK)
    assert "dropped" in output(python, "-m", "dmlbench", "list", "attacks", cwd=folder.parent)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("attacks.base", "Attack"),
        ("attacks.engine.pgd", "PGD"),
        ("defenses.base", "Defense"),
        ("core.spec", "parse"),
    ],
)
def test_an_editor_finds_the_definition(clone: tuple[Path, Path], module: str, name: str) -> None:
    """Jedi stands for all editors: it sees only files on the path, no import hooks."""
    folder, python = clone
    environment = jedi.create_environment(python.parent.parent, safe=False)
    script = jedi.Script(f"from dmlbench.{module} import {name}", environment=environment)
    (found,) = script.goto(1, len(script._code), follow_imports=True)
    assert found.module_path.resolve().is_relative_to(folder)
    assert found.name == name


def test_the_declared_version_is_the_packages() -> None:
    from dmlbench import __version__

    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == __version__
