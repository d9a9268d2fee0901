"""The cache of decoded images is complete or absent, even if its creation is interrupted."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dmlbench.common.errors import UserError
from dmlbench.datasets.files import cache as module
from dmlbench.datasets.files import decoding
from dmlbench.datasets.files.cache import Cache
from dmlbench.datasets.folder import Folder
from tests import trees
from tests.faults import PATIENCE

CLASSES, EACH = 6, 30  # six chunks
LOAD = """
import sys
from pathlib import Path
from dmlbench.datasets.files.cache import Cache
from dmlbench.datasets.folder import Folder
if __name__ == "__main__":
    print(Folder(root=sys.argv[1]).load(None, Cache(Path(sys.argv[2]))).digest)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred files, made of a few pictures in two sizes."""
    root = tmp_path_factory.mktemp("set") / "set"
    pictures = [trees.jpeg(0, i, (320, 240)) for i in range(4)]
    for label in range(CLASSES):
        for i in range(EACH):
            trees.write(root / f"{label}" / f"{i:02}.jpg", pictures[(label + i) % 4])
    return root


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "load.py"
    path.write_text(LOAD)
    return path


@pytest.fixture(scope="module")
def digest(root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest, from pixels decoded one by one in this process."""
    data = Folder(root=str(root)).load(None, Cache(tmp_path_factory.mktemp("reference")))
    names = Folder(root=str(root)).found(None).names
    pixels = [decoding.decode((root / name).read_bytes()) for name in names]
    stored = np.concatenate([data.train.images, data.test.images])
    assert np.array_equal(stored, np.stack(pixels))
    return data.digest


def started(script: Path, root: Path, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(script), str(root), str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def files(cache: Path) -> list[str]:
    return sorted(path.suffix for path in cache.iterdir() if path.suffix != ".lock")


def test_two_processes_build_it_once(root: Path, script: Path, digest: str, tmp_path: Path) -> None:
    running = [started(script, root, tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=PATIENCE) for process in running]
    assert [out.strip() for out, _ in outputs] == [digest, digest], outputs
    assert files(tmp_path) == [".npz", ".pixels"]


def children(pid: int) -> set[int]:
    """Processes that ``pid`` started."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return {int(word) for word in listed.split()}


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the workers in /proc")
def test_a_killed_build_leaves_no_worker_and_no_half_cache(
    root: Path, script: Path, digest: str, tmp_path: Path
) -> None:
    process = started(script, root, tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*.partial")) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.3)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    assert files(tmp_path) == [".partial"]
    assert workers
    while not all(map(gone, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(map(gone, workers))
    assert Folder(root=str(root)).load(None, Cache(tmp_path)).digest == digest
    assert files(tmp_path) == [".npz", ".pixels"]


def test_a_full_disk_is_one_line_and_leaves_nothing(
    root: Path, script: Path, tmp_path: Path
) -> None:
    def limit() -> None:
        size = 10 * decoding.image_bytes(decoding.SIDE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    command = [sys.executable, str(script), str(root), str(tmp_path)]
    done = subprocess.run(
        command, preexec_fn=limit, capture_output=True, text=True, timeout=PATIENCE
    )
    assert "UserError: cannot write to --cache" in done.stderr
    assert files(tmp_path) == []


def test_too_little_space_is_said_before_any_work(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000_000))
    with pytest.raises(UserError, match=r"takes 35 MB in .*10 MB are free.*--cache"):
        Folder(root=str(root)).load(None, Cache(tmp_path))
    assert files(tmp_path) == []


@pytest.fixture
def built(tmp_path: Path) -> tuple[Folder, Cache]:
    """A small set and its cache."""
    folder = Folder(root=str(trees.folder(tmp_path / "set", classes=4, each=2)))
    cache = Cache(tmp_path / "cache")
    folder.load(None, cache)
    return folder, cache


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    reads: list[int] = []
    real = module.read_files

    def counted(title: str, root: Path, names: list[str], *rest: object) -> object:
        reads.append(len(names))
        return real(title, root, names, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "read_files", counted)
    return reads


def test_a_cache_is_used_until_a_file_changes(
    built: tuple[Folder, Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = built
    before, reads = folder.load(None, cache).digest, count_reads(monkeypatch)
    assert folder.load(None, cache).digest == before
    assert reads == []
    image = Path(folder.root) / "class 000" / "image 000.jpg"
    os.utime(image, (1, 1))
    assert folder.load(None, cache).digest == before
    assert reads == [8]
    other = trees.jpeg(0, 101)
    other += bytes(image.stat().st_size - len(other))  # as long, and as old
    image.write_bytes(other)
    os.utime(image, (1, 1))
    assert folder.load(None, cache).digest != before
    assert reads == [8, 8]


@pytest.mark.parametrize("suffix", ["npz", "pixels"])
@pytest.mark.parametrize("how", ["absent", "empty", "short", "garbage"])
def test_an_incomplete_cache_is_built_again(
    built: tuple[Folder, Cache], suffix: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = built
    before, reads = folder.load(None, cache).digest, count_reads(monkeypatch)
    (path,) = cache.place.glob(f"*.{suffix}")
    content = path.read_bytes()
    broken = {"empty": b"", "short": content[:-1], "garbage": b"PK garbage"}
    if how == "absent":
        path.unlink()
    else:
        path.write_bytes(broken[how])
    assert folder.load(None, cache).digest == before
    assert reads == [8]
    assert path.read_bytes() == content


def test_an_unwritable_folder_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--cache .*file cannot be written to: not a folder"):
        Folder(root=str(root)).load(None, Cache(tmp_path / "file"))


def test_a_name_need_not_be_utf8(built: tuple[Folder, Cache]) -> None:
    folder, cache = built
    image = Path(folder.root) / "class 000" / "image 000.jpg"
    before = folder.load(None, cache).digest
    image.rename(image.with_name(os.fsdecode(b"caf\xe9.jpg")))  # still the first of its class
    assert folder.load(None, cache).digest == before
