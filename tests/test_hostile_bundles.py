"""Bundles that are not what ``submit`` writes: hostile archives, members and texts."""

from __future__ import annotations

import json
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from msgspec import structs

from dmlbench.common.errors import UserError
from dmlbench.common.files import write_json
from dmlbench.common.hashing import file_sha256, sealed
from dmlbench.storage.checkpoint import MANIFEST, WEIGHTS, read_manifest
from dmlbench.submission import bundle as bundles
from tests.bundles import Forgery, Place, look_at
from tests.command import refused


def member(name: str, content: bytes = b"{}", **fields: Any) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


HOSTILE = {
    "zip slip": [member("../../evil.json")],
    "absolute path": [member("/evil.json")],
    "code": [member("cells/evil.py", b"print()")],
    "pickle": [member("models/0123456789abcdef/checkpoint.pt", b"\x80\x04.")],
    "link": [member("bundle.json", b"/etc/passwd", external_attr=(stat.S_IFLNK | 0o777) << 16)],
    "bomb": [member("bundle.json", bytes(1 << 21), compress_type=zipfile.ZIP_DEFLATED)],
    "packed weights": [
        member(f"models/{'0' * 16}/{WEIGHTS}", bytes(1 << 16), compress_type=zipfile.ZIP_DEFLATED)
    ],
    "no record": [member("results.csv", b"")],
    "not JSON": [member("bundle.json", b"\xff")],
    "deep": [member("bundle.json", b"[" * 100_000)],
    "unsealed": [member("bundle.json", b'{"schema": 1}')],
    "no schema": [member("bundle.json", json.dumps(sealed({"schema": 0})).encode())],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_bundle_is_one_line_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        for info, content in HOSTILE[kind]:
            file.writestr(info, content)
    (tmp_path / "to").mkdir()
    with pytest.raises(UserError) as caught:
        bundles.unpack(tmp_path / "evil.zip", tmp_path / "to")
    assert "evil.zip is no bundle of 'dmlbench submit': " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil.json").exists()
    assert not (tmp_path.parent / "evil.json").exists()


def test_a_bundle_of_a_newer_version_says_so(tmp_path: Path) -> None:
    info, content = member("bundle.json", json.dumps(sealed({"schema": 9})).encode())
    with zipfile.ZipFile(tmp_path / "new.zip", "w") as file:
        file.writestr(info, content)
    (tmp_path / "to").mkdir()
    with pytest.raises(UserError, match=r"new\.zip has schema 9, .* up to 1: update dmlbench"):
        bundles.unpack(tmp_path / "new.zip", tmp_path / "to")


def test_a_member_that_is_longer_than_it_says_is_refused(place: Place, tmp_path: Path) -> None:
    content = bytearray(place.bundle.read_bytes())
    size = len(place.bundle.read_bytes())
    with zipfile.ZipFile(place.bundle) as whole:
        info = whole.getinfo("results.csv")
    start = content.rindex(b"results.csv") - 46  # its entry in the central directory
    assert content[start : start + 4] == b"PK\x01\x02"
    content[start + 24 : start + 28] = (10).to_bytes(4, "little")
    assert len(content) == size
    assert info.file_size > 10
    (tmp_path / "short.zip").write_bytes(content)
    (tmp_path / "to").mkdir()
    with pytest.raises(UserError, match=r"short\.zip"):
        bundles.unpack(tmp_path / "short.zip", tmp_path / "to")
    assert (tmp_path / "to" / "results.csv").stat().st_size <= 10


def test_no_bundle_runs_code(place: Place, tmp_path: Path) -> None:
    """A factory in the manifest, and an attack from a file, are refused before they are loaded."""
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('ran').touch()\n")

    def network(forgery: Forgery) -> None:
        (folder,) = (forgery.folder / "models").iterdir()
        made = read_manifest(folder)
        assert made is not None
        write_json(folder / MANIFEST, structs.replace(made, model="evil.py:make").as_json())

    def attack(forgery: Forgery) -> None:
        cell = forgery.cell("es")
        forgery.rename(cell, cell.facts, attack_resolved="evil.py:Attack:steps=3")

    def inner(forgery: Forgery) -> None:
        cell = forgery.cell("es")
        forgery.rename(cell, cell.facts, attack_resolved='uap:by="evil.py:Attack:steps=3"')

    for name, edit in (("network", network), ("attack", attack), ("inner", inner)):
        (tmp_path / name).mkdir()
        path = place.forged(edit, tmp_path / name)
        refused(place.fork_server.run(["verify", str(path)], tmp_path, 300), "--allow-code")
    assert not (tmp_path / "ran").exists()


def test_no_text_of_a_bundle_moves_the_cursor(place: Place, tmp_path: Path) -> None:
    def label(forgery: Forgery) -> None:
        for cell in forgery.store.read()[0]:
            about = structs.replace(cell.about, label="HM\x1b[2J\raccepted")
            forgery.store.put(structs.replace(cell, about=about), forgery.store.outcomes(cell.id))

    path = place.forged(label, tmp_path)
    done = place.fork_server.run(["verify", str(path), "--queries", "2"], tmp_path, 300)
    assert "HM [2J accepted" in done.stdout, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"CA+": ["x"] * 1000}),
        pd.DataFrame({"CA+": np.zeros(999)}),
        pd.DataFrame({"CA+": np.zeros(1000, dtype=np.float32)}),
        None,
    ],
    ids=["text", "rows", "float32", "no parquet"],
)
def test_a_file_that_holds_no_outcomes_is_one_line(
    place: Place, tmp_path: Path, table: pd.DataFrame | None
) -> None:
    def other(forgery: Forgery) -> None:
        cell = forgery.cell("ca+")
        path = forgery.store.path(cell.id, "parquet")
        path.write_bytes(b"PAR1") if table is None else table.to_parquet(path)
        new = structs.replace(cell, outcomes=file_sha256(path))
        write_json(forgery.store.path(cell.id), new.as_json())

    with pytest.raises(UserError, match="is no file of outcomes: "):
        look_at(place.forged(other, tmp_path))
