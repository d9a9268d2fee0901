"""Data sets that lie in a git repository: one commit of it, whose id proves every file."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dmlbench.common.errors import UserError
from dmlbench.common.files import check_writable, locked
from dmlbench.datasets.files.places import HOME

if TYPE_CHECKING:
    from dmlbench.common.progress import Reporter


@dataclass(frozen=True)
class Repository:
    """A commit of a git repository.

    Attributes:
        url: its address, or the folder of a copy.
        commit: the full id of the commit.
        folder: name of the folder that the files are put into.
    """

    url: str
    commit: str
    folder: str


def clone(repository: Repository, data_root: Path | None, reporter: Reporter) -> Path:
    """Fetch the files of the commit, without its history, into the data root; returns the folder.

    A folder that is there already is used as it is. If two processes need it, one fetches it and
    the other waits.

    Raises:
        UserError: git is not installed, or the repository cannot be reached or lacks the commit.
    """
    root = data_root or HOME
    check_writable(root, "--data-root")
    folder = root / repository.folder
    if folder.exists():
        reporter.say(f"{folder} is there already; delete it to have it fetched again")
        return folder
    name = repository.folder
    with locked(root / f".{name}.lock", reporter.say, f"another process is fetching {name}"):
        return folder if folder.exists() else _clone(repository, root, reporter)


def _clone(repository: Repository, root: Path, reporter: Reporter) -> Path:
    folder = root / repository.folder
    temporary = Path(tempfile.mkdtemp(prefix=".cloning-", dir=root))
    reporter.say(f"fetching {repository.url} at {repository.commit[:7]}")
    try:
        _git(temporary, "init", "--quiet")
        _git(temporary, "fetch", "--quiet", "--depth=1", repository.url, repository.commit)
        _git(temporary, "checkout", "--quiet", "FETCH_HEAD")
        shutil.rmtree(temporary / ".git")
        temporary.chmod(0o755)  # mkdtemp gives its folder to one user alone
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _git(folder: Path, *arguments: str) -> None:
    try:
        subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise UserError("git is not installed: install it, or copy the data set by hand") from None
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.split())[-300:]
        raise UserError(f"git {arguments[0]} failed: {reason}") from None
