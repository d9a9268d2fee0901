"""Downloads from a faulty or hostile server: interrupted, missing, altered, with unsafe paths."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from dmlbench.common import download
from dmlbench.common.errors import UserError
from dmlbench.datasets.files.archive import Archive, fetch
from tests.reporters import Silent


def tar(members: dict[str, bytes | str]) -> bytes:
    """A tar.gz; a str is the target of a symbolic link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                file.addfile(info)
            else:
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


NOISE = hashlib.shake_256(b"noise").digest(100_000)
GOOD = tar({"set/list.txt": b"1 x\n", "set/images/a.jpg": NOISE, "notes.txt": b"not wanted"})


class Host(BaseHTTPRequestHandler):
    """Serves ``content``, at most ``limit`` bytes of it before it drops the connection."""

    content = GOOD
    limit = 1 << 30
    length: str | None = ""  # what is announced: the right one, another text, or nothing
    ranges = True
    asked: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.asked.append(asked)
        first = int(asked[6:-1]) if asked and self.ranges else 0
        if self.path == "/gone" or first >= len(self.content):
            self.send_error(404 if self.path == "/gone" else 416)
            return
        self.send_response(206 if first else 200)
        part = self.content[first:]
        if self.length is not None:
            self.send_header("Content-Length", self.length or str(len(part)))
        self.end_headers()
        self.wfile.write(part[: self.limit])

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Host, "asked", [])
    server = HTTPServer(("127.0.0.1", 0), Host)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def archive(host: str, content: bytes = GOOD, name: str = "set.tgz") -> Archive:
    return Archive(f"{host}/{name}", hashlib.md5(content).hexdigest(), "set")


def check(folder: Path) -> None:
    assert (folder / "images" / "a.jpg").read_bytes() == NOISE
    left = {path.name for path in folder.parent.glob("[!.]*")}
    assert left == {"set", "set.tgz"}


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    monkeypatch.setattr(Host, "ranges", ranges)
    monkeypatch.setattr(Host, "limit", 30_000)
    monkeypatch.setattr(download, "PIECE", 1000)
    with pytest.raises(UserError, match=r"connection was cut.*run again to go on"):
        fetch(archive(host), tmp_path, Silent())
    assert (tmp_path / "set.tgz.part").read_bytes() == GOOD[:30_000]
    monkeypatch.setattr(Host, "limit", 1 << 30)
    check(fetch(archive(host), tmp_path, Silent()))
    assert Host.asked == [None, "bytes=30000-"]
    fetch(archive(host), tmp_path, Silent())
    assert len(Host.asked) == 2  # it is there: nothing is asked for


def test_two_processes_that_need_one_file_download_it_once(host: str, tmp_path: Path) -> None:
    reporters = [Silent(), Silent()]
    with ThreadPoolExecutor(2) as both:
        futures = [both.submit(fetch, archive(host), tmp_path, one) for one in reporters]
        assert [future.result() for future in futures] == [tmp_path / "set"] * 2
    assert len(Host.asked) == 1
    check(tmp_path / "set")


def test_a_file_is_downloaded_where_no_lock_can_be_had(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "the file of another user")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    check(fetch(archive(host), tmp_path, Silent()))


def test_a_download_that_was_whole_is_not_fetched_again(host: str, tmp_path: Path) -> None:
    (tmp_path / "set.tgz.part").write_bytes(GOOD)
    check(fetch(archive(host), tmp_path, Silent()))


def test_an_archive_put_there_by_hand_is_checked_and_used(tmp_path: Path) -> None:
    (tmp_path / "set.tgz").write_bytes(GOOD[:-1])
    with pytest.raises(UserError, match="not the official file"):
        fetch(archive("http://nowhere"), tmp_path, Silent())
    (tmp_path / "set.tgz").write_bytes(GOOD)
    check(fetch(archive("http://nowhere"), tmp_path, Silent()))


def test_a_download_that_the_server_altered_is_not_kept(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "content", GOOD[:-1] + b"?")
    with pytest.raises(UserError, match="damaged file"):
        fetch(archive(host), tmp_path, Silent())
    assert list(tmp_path.glob("[!.]*")) == []


def test_without_server_and_file_the_error_says_what_to_do(host: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"HTTP 404.*put the file into {tmp_path}"):
        fetch(archive(host, name="gone"), tmp_path, Silent())
    with pytest.raises(UserError, match=r"cannot be downloaded \(.*refused.*by other means"):
        fetch(archive("http://127.0.0.1:9"), tmp_path, Silent())


@pytest.mark.parametrize(
    "url", ["https://", "https://[bad/w", "https://[ff]/w", "https://a..b/w", "https://x:99999/w"]
)
def test_a_faulty_address_is_one_line(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be downloaded") as caught:
        download.download(url, tmp_path / "w.part", Silent())
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is no address: it needs a host"):
        download.check_address(url)


def test_an_address_with_a_host_is_fine() -> None:
    for url in ("https://example.org/w", "https://example.org:8443/a?b=c", "https://[::1]/w"):
        download.check_address(url)


def test_a_faulty_answer_is_one_line(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A length in words, and nothing to go on with from the first byte on."""
    monkeypatch.setattr(Host, "length", "abc")
    check(fetch(archive(host), tmp_path, Silent()))
    monkeypatch.setattr(Host, "content", b"")
    with pytest.raises(UserError, match=r"is not served \(HTTP 416\)"):
        fetch(archive(host, name="other.tgz"), tmp_path / "other", Silent())


@pytest.mark.parametrize("announced", ["", None], ids=["announced", "not announced"])
def test_a_download_ends_at_the_most_bytes(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, announced: str | None
) -> None:
    """Also of one that is continued, and nothing is left of it."""
    monkeypatch.setattr(Host, "length", announced)
    partial, size = tmp_path / "w.part", len(GOOD)
    for have in (0, 1000):
        partial.write_bytes(GOOD[:have])
        with pytest.raises(UserError, match=f"serves more than the {size - 1:,} bytes"):
            download.download(f"{host}/w", partial, Silent(), size - 1)
        assert not partial.exists()
    download.download(f"{host}/w", partial, Silent(), size)
    assert partial.read_bytes() == GOOD


@pytest.mark.parametrize(
    "members",
    [
        {"set/a": b"x", "../outside": b"x"},
        {"set/a": b"x", "set/link": "/etc", "set/link/outside": b"x"},
        {"set/a": b"x", "set/link": "../../.."},
        {"another/a": b"x"},
    ],
    ids=["parent", "absolute link", "relative link", "no such folder"],
)
def test_hostile_archives_write_nothing_outside(
    tmp_path: Path, members: dict[str, bytes | str]
) -> None:
    content, root = tar(members), tmp_path / "root"
    root.mkdir()
    (root / "set.tgz").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be unpacked|holds no folder set"):
        fetch(archive("http://nowhere", content), root, Silent())
    assert [path.name for path in root.glob("[!.]*")] == ["set.tgz"]
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_a_zip_keeps_its_members_inside(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("set/a", "x")
        file.writestr("../../outside", "x")
    root = tmp_path / "a" / "root"
    root.mkdir(parents=True)
    (root / "set.zip").write_bytes(buffer.getvalue())
    fetch(archive("http://nowhere", buffer.getvalue(), "set.zip"), root, Silent())
    assert {path.name for path in root.glob("[!.]*")} == {"set", "set.zip"}
    assert not list(tmp_path.rglob("outside"))
