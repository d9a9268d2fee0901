"""The cache of decoded images is complete or absent, even if its creation is interrupted."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dmlbench.common.errors import UserError
from dmlbench.common.progress import QuietReporter
from dmlbench.datasets.files import cache as module
from dmlbench.datasets.files import decoding
from dmlbench.datasets.files.cache import Cache
from dmlbench.datasets.folder import Folder
from tests import trees
from tests.faults import PATIENCE

Run = Callable[..., "subprocess.CompletedProcess[str]"]
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
    """A few hundred files."""
    root = tmp_path_factory.mktemp("set") / "set"
    for label in range(CLASSES):
        for i in range(EACH):
            large = trees.picture(label, i).resize((320, 240))
            path = root / f"{label}" / f"{i:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            large.save(path, **trees.JPEG)
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


@pytest.mark.slow
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


def damage(cache: Cache) -> Path:
    """Put zeros into the last quarter of the pixels."""
    (path,) = cache.place.glob("*.pixels")
    content = path.read_bytes()
    path.write_bytes(content[: -len(content) // 4] + bytes(len(content) // 4))
    return path


def test_damaged_pixels_are_decoded_again(
    built: tuple[Folder, Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = built
    before, reads = folder.load(None, cache), count_reads(monkeypatch)
    content = np.array(before.test.images)
    for _ in range(2):  # the second damage comes after the process has checked the pixels
        path = damage(cache)
        with pytest.warns(UserWarning, match=f"images of folder in {path} are damaged: decoding"):
            again = folder.load(None, cache)
        assert again.digest == before.digest
        assert np.array_equal(again.test.images, content)
        folder.load(None, cache)
    assert reads == [8, 8]


def test_pixels_are_compared_once_in_a_process_and_not_by_its_workers(
    built: tuple[Folder, Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bars(QuietReporter):
        def task(self, title: str, total: int, done: int = 0) -> Any:
            bars.append((title, total))
            return super().task(title, total, done)

    bars: list[tuple[str, int]] = []
    monkeypatch.setattr(module, "LONG", 0)
    folder, cache = built[0], replace(built[1], reporter=Bars())
    damage(cache)
    folder.load(None, replace(cache, checked=True))  # as they are
    assert bars == []
    with pytest.warns(UserWarning, match="are damaged"):
        folder.load(None, cache)
    assert bars[-1] == ("decode folder", 8)
    del bars[:]
    for _ in range(2):
        folder.load(None, cache)
    assert bars == [("check folder", 8)]


@pytest.mark.slow
def test_what_is_odd_about_a_set_is_said_once(dmlbench: Run, tmp_path: Path) -> None:
    """The main process says it, and not each of its workers again."""
    for part in ("train", "test"):
        trees.folder(tmp_path / "set" / part, classes=2, each=2)
    asked = ("--dataset", "folder:root=set,size=32", "--model", "c2f2", "--cache", "cache")
    few = ("--recipe", "epochs=1,pairs=2", "--defense", "none", "--attack", "es:steps=1")
    assert dmlbench("run", *asked, *few, "--dry-run").returncode == 0
    damage(Cache(tmp_path / "cache"))
    done = dmlbench("run", *asked, *few, "--workers", "2", "--threads", "1")
    assert done.returncode == 0, done.stderr
    for said in ("2 classes are in both splits", "are damaged: decoding them again"):
        assert len([line for line in done.stderr.splitlines() if said in line]) == 1


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
