"""The built wheel holds exactly the source that the folders hold."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = {"benchmark": "dmlbench", "attacks": "dmlbench/attacks", "defenses": "dmlbench/defenses"}


def source_files() -> set[str]:
    """Every tracked file of the package folders, at its place in the wheel."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *FOLDERS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    files = set()
    for line in listed.stdout.splitlines():
        folder, _, rest = line.partition("/")
        if (ROOT / line).is_file() and not (ROOT / line).is_symlink():
            files.add(f"{FOLDERS[folder]}/{rest}")
    return files


def test_the_wheel_holds_every_source_file_and_no_other(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == source_files()


def test_the_declared_version_is_the_packages() -> None:
    from dmlbench import __version__

    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == __version__
