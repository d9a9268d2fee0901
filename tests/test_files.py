"""Files that are written: whole after kills and full disks, and readable by others."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest

from dmlbench.common.errors import UserError
from dmlbench.common.files import check_may_write, check_writable, write_atomically


def test_an_unwritable_folder_is_said_at_once(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    for folder in (blocked, blocked / "results", tmp_path / ("x" * 300), Path("/proc/nowhere")):
        with pytest.raises(UserError, match=r"--results .* cannot be written to") as caught:
            check_writable(folder, "--results")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(blocked / "x.json", b"1")


def test_whether_a_folder_may_be_written_to_is_told_without_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_may_write(tmp_path / "a" / "b", "--results")
    monkeypatch.setattr(os, "access", lambda place, mode: place != tmp_path)  # root may all
    for folder in (tmp_path, tmp_path / "a" / "b"):
        with pytest.raises(UserError, match=r"--results .* cannot be written to: no permission"):
            check_may_write(folder, "--results")
    assert list(tmp_path.iterdir()) == []


def test_processes_of_the_same_number_do_not_refuse_each_others_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of several containers that share a folder."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    with ThreadPoolExecutor(4) as several:
        list(several.map(lambda _: check_writable(tmp_path, "--results"), range(400)))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_others_may_read_a_file_as_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "x.json", b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == mode


def test_a_file_and_the_name_of_it_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is flushed before it gets its name, the folder afterwards."""
    flushed: list[tuple[bool, bool]] = []

    def fsync(handle: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        flushed.append((is_folder, (tmp_path / "x.json").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "x.json", b"1")
    assert flushed == [(False, False), (True, True)]


@pytest.mark.parametrize(("number", "refused"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_that_cannot_flush_a_folder_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, refused: bool
) -> None:
    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match="cannot write") if refused else nullcontext():
        write_atomically(tmp_path / "x.json", b"1")


def test_killed_writers_leave_no_torn_file(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from dmlbench.common.files import check_writable, write_atomically, write_json
        for i in range(10**9):
            write_atomically(Path(sys.argv[1]) / f"{i % 7}.json", bytes([65 + i % 26]) * 200_000)
        """
    )
    for delay in (0.5, 0.7, 0.9):
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    files = list(tmp_path.glob("*.json"))
    assert files
    for file in files:
        content = file.read_bytes()
        assert content == content[:1] * 200_000
