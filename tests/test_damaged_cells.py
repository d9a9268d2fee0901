"""Cells that are damaged, cannot be read, or are replaced while another process reads them."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from dmlbench.analysis.csv_files import export, read_folder, stored_records
from dmlbench.api.load import load_results
from dmlbench.common.errors import UserError
from dmlbench.common.hashing import sealed
from dmlbench.storage.store import Store
from tests.cells import cell, failing

DAMAGE = {
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "list": lambda text: "[]",
    "edited": lambda text: text.replace("c0ffee", "c0ffff"),
    "binary": lambda text: "\udcff\udcfe\0",
    "schema": lambda text: text.replace('"schema": 4', '"schema": 0'),
    "no schema": lambda text: text.replace('"schema": 4,', ""),
    "unknown key": lambda text: text.replace('"schema": 4', '"schema": 4, "mood": 1'),
    "unknown key within": lambda text: text.replace('"n": 40', '"n": 40, "mood": 1'),
    "no queries": lambda text: text.replace('"queries": ""\n', "").replace('"strict",', '"strict"'),
    "status": lambda text: text.replace('"ok"', '"good"'),
    "type": lambda text: text.replace('"seed": 0', '"seed": "0"'),
    "negative n": lambda text: text.replace('"n": 40', '"n": -40'),
    "more than all": lambda text: text.replace("12.5", "250.0").replace("13.5", "251.0"),
    "outside its interval": lambda text: text.replace('"low": 11.5', '"low": 12.75'),
    "half an interval": lambda text: text.replace('"low": 11.5', '"low": null'),
    "direction": lambda text: text.replace("higher", "sideways"),
    "no number": lambda text: text.replace('"value": 12.5', '"value": NaN'),
}


def resealed(text: str) -> str:
    """A damaged cell's JSON under a checksum that fits."""
    try:
        record = json.loads(text)
        return json.dumps(sealed({k: v for k, v in record.items() if k != "checksum"}))
    except (ValueError, AttributeError):
        return text


@pytest.mark.parametrize("seal", [str, resealed], ids=["as it is", "resealed"])
@pytest.mark.parametrize("how", [*DAMAGE, "renamed"])
def test_a_damaged_cell_is_not_believed(
    tmp_path: Path, how: str, seal: Callable[[str], str]
) -> None:
    store, one = Store(tmp_path), cell()
    store.put(one)
    path = tmp_path / "cells" / f"{one.id}.json"
    text = path.read_text()
    if how == "renamed":
        path = path.rename(path.with_name("0123456789abcdef.json"))
    else:
        damaged = DAMAGE[how](text)
        assert damaged != text
        path.write_bytes(seal(damaged).encode(errors="surrogateescape"))
    assert store.done(one.id) is None
    assert store.cells() == []
    assert store.read() == ([], [path])
    store.repair([path])
    assert store.read() == ([], [])
    assert [p.name for p in store.quarantine.iterdir()] == [path.name]


def test_a_row_of_a_cell_that_does_not_count_is_not_read_from_the_export(tmp_path: Path) -> None:
    store, one = Store(tmp_path), cell()
    store.put(one, {"CA+": np.arange(40.0)})
    export(store)
    assert [record["cell"] for record in stored_records(store, store.cells())] == [one.id] * len(
        one.metrics
    )
    store.path(one.id).write_text("{}")
    assert [record["cell"] for record in read_folder(tmp_path)]  # the CSV has the row still
    assert stored_records(store, store.cells()) == []
    with (
        pytest.warns(UserWarning, match="is damaged and left out"),
        pytest.raises(UserError, match="no results in"),
    ):
        load_results(tmp_path)


def test_temporary_files_of_killed_writers_are_deleted_and_no_others(tmp_path: Path) -> None:
    one, name = "0123456789abcdef", "a1b2_c3d.tmp"
    written = [
        *(f".results.csv.{name}", f".results-{one[:8]}.csv.bak.{name}", f"..exported.{name}"),
        *(f"cells/.{one}.json.{name}", f"cells/.{one}.{one}.parquet.{name}"),
        *(f"models/{one}/.checkpoint.safetensors.{name}", f"runs/.{one}.yaml.{name}"),
        *(f"adversarial/.{one}.npz.{name}", f"adversarial/c0/ca-plus-{one}/.query-3.png.{name}"),
    ]
    foreign = [f".notes.{name}", ".a.tmp", f"cells/.notes.json.{name}", f"runs/.x.yaml.{name}",
               f"models/mine/.w.pt.{name}", f"papers/.{one}.json.{name}"]  # fmt: skip
    for file in (*written, *foreign, f"adversarial/.{one[::-1]}.npz.{name}"):
        place = tmp_path / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        # that writer may be alive: a batch of adversarial images takes hours
        alive = one[::-1] in file
        os.utime(place, (0, time.time() - 24 * 3600 if alive else 0))
    Store(tmp_path).repair([])
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.tmp")}
    assert left == {*foreign, f"adversarial/.{one[::-1]}.npz.{name}"}


def test_every_flipped_bit_of_a_cell_is_found(tmp_path: Path) -> None:
    """Unless what it says is still the same, to the last digit."""
    store, one = Store(tmp_path), cell()
    store.put(one, {"CA+": np.arange(40.0)})
    path, chance = store.path(one.id), random.Random(0)
    (whole,) = store.cells()
    for file in (path, store.path(one.id, "parquet")):
        content = file.read_bytes()
        for _ in range(400):
            place, bit = chance.randrange(len(content)), 1 << chance.randrange(8)
            file.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            found = store.get(one.id)
            assert found in (None, whole)
            if file != path:
                assert store.changed_outcomes([whole]) == [path]
        file.write_bytes(content)
    assert store.changed_outcomes([whole]) == []


@pytest.mark.parametrize("kind", ["json", "parquet"])
@pytest.mark.parametrize("how", ["permission", "pipe", "folder"])
def test_a_file_that_cannot_be_read_is_refused_and_left_alone(
    tmp_path: Path, kind: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, one = Store(tmp_path), cell()
    store.put(one, {"CA+": np.arange(40.0)})
    (whole,) = store.cells()
    path = store.path(one.id, kind)
    if how == "permission":  # root may read everything

        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("dmlbench.common.files.os.open", refuse)
    else:
        path.unlink()
        os.mkfifo(path) if how == "pipe" else path.mkdir()
    for read in (store.read, store.cells) if kind == "json" else ():
        with pytest.raises(UserError, match=f"{path} cannot be read"):
            read()
    for check in (lambda: store.outcomes(one.id), lambda: store.changed_outcomes([whole])):
        if kind == "parquet":
            with pytest.raises(UserError, match="cannot be read"):
                check()
    assert path.exists()
    assert not store.quarantine.exists()


def test_damaged_outcomes_are_said_and_put_aside(tmp_path: Path) -> None:
    store, one = Store(tmp_path), cell()
    store.put(one, {"CA+": np.arange(40.0)})
    path = tmp_path / "cells" / f"{one.id}.parquet"
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged and was moved"):
        store.outcomes(one.id)
    assert store.get(one.id) is None
    assert len(list(store.quarantine.iterdir())) == 2


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
@pytest.mark.parametrize("known", ["ok", "failed", "none"])
def test_a_cell_whose_replacement_is_killed_is_the_old_or_the_new_one(
    writes: int, known: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``put`` ends after a number of its steps; a reader between any two finds a whole cell."""
    store, old, new = Store(tmp_path), cell(), cell(value=20.0)
    new = replace(new, id=old.id, facts=old.facts)
    if known == "ok":
        store.put(old, {"CA+": np.arange(40.0)})
    elif known == "failed":
        store.put(failing(old))
    before, after = store.get(old.id), {"CA+": np.ones(40)}
    left, real = [writes], Path.replace

    class KilledError(Exception):
        pass

    def counted(self: Path, target: Path) -> Path:  # each file appears by a rename
        if not left[0]:
            raise KilledError
        left[0] -= 1
        return real(self, target)

    monkeypatch.setattr(Path, "replace", counted)
    try:
        store.put(new, after)
        killed = False
    except KilledError:
        killed = True
    monkeypatch.undo()
    assert killed == (writes < (2 if known == "none" else 3))
    (found, damaged) = store.read()
    assert not damaged
    assert store.changed_outcomes(found) == []
    assert store.whole(found) == found
    replaced = writes >= 2
    for one in found:
        if replaced:
            assert one.metrics == new.metrics
            assert store.done(one.id) == one
            assert store.outcomes(one.id)["CA+"].tolist() == [1] * 40
        else:
            assert one == before
            if known == "ok":
                assert store.outcomes(one.id)["CA+"].tolist() == list(range(40))
    assert len(found) == (replaced or known != "none")
    store.put(new, after)  # again, and to the end: the files are those of a cell stored once
    assert sorted(path.name for path in (tmp_path / "cells").iterdir()) == [
        f"{old.id}.json", f"{old.id}.parquet"
    ]  # fmt: skip
    assert store.outcomes(old.id)["CA+"].tolist() == [1] * 40


def test_a_cell_that_is_replaced_while_it_is_read_is_not_damaged(tmp_path: Path) -> None:
    store, old = Store(tmp_path), cell()
    store.put(old, {"CA+": np.arange(40.0)})
    seen = store.get(old.id)
    assert seen is not None
    store.put(old, {"CA+": np.ones(40)})
    assert store.changed_outcomes([seen]) == []
    found, real = [seen], Store.get
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Store, "get", lambda self, one: found.pop() if found else real(self, one))
        assert store.outcomes(old.id)["CA+"].tolist() == [1] * 40
