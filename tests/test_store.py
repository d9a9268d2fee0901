"""Cells on disk: complete, verified, found by identity, and whole after kills and full disks."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import random
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dmlbench.analysis import csv_files
from dmlbench.analysis.csv_files import export
from dmlbench.analysis.records import headings, wide
from dmlbench.common.errors import CellError, UserError
from dmlbench.common.files import check_writable, write_atomically, write_json
from dmlbench.common.hashing import derived_seed, identity, sealed
from dmlbench.compute.provenance import Provenance, without_folders
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.metrics.ers import ERS_COLUMNS
from dmlbench.storage import checkpoint
from dmlbench.storage.cell import About, Cell, ColumnInfo, ExceptionInfo, PlannedCell
from dmlbench.storage.store import Store

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_identity_ignores_order_and_sees_content(facts: dict[str, Any]) -> None:
    backwards = dict(reversed(list(facts.items())))
    assert identity(facts) == identity(backwards)
    assert identity(facts | {"extra": 1}) != identity(facts | {"extra": 2})


def test_seeds_differ_by_purpose() -> None:
    assert derived_seed(0, "epoch", 1) != derived_seed(0, "epoch", 2)
    assert derived_seed(0, "epoch", 11) != derived_seed(0, "epoch", 1, 1)
    assert 0 <= derived_seed("x") < 2**63


MADE = Provenance(
    dmlbench="0",
    git=None,
    python="3",
    platform="Linux",
    libraries={"torch": "2"},
    device="cpu",
    threads=1,
    argv=[],
)


def manifest(**fields: Any) -> checkpoint.Manifest:
    """A manifest of weights that may be nowhere."""
    named: dict[str, Any] = {
        "schema": checkpoint.MANIFEST_SCHEMA,
        "checkpoint": checkpoint.WEIGHTS,
        "sha256": "0" * 64,
        "training_id": identity({"seed": 0}),
        "training": {"seed": 0},
        "dataset": "tiny",
        "defense": "hm",
        "label": "HM",
        "training_cost": 9,
        "parameters": 1,
        "history": [{"loss": 1.0, "hardness": None}],
        "seconds": 1.0,
        "started": 0.0,
        "provenance": MADE,
    }
    return checkpoint.Manifest(**named | fields)


def cell(
    metric: str = "CA+",
    value: float = 12.5,
    versions: dict[str, int] | None = None,
    **about: Any,
) -> Cell:
    facts = {"kind": "attack", "checkpoint": "c0ffee", "about": about, "metric": metric}
    facts |= versions or {}
    subject: dict[str, Any] = {
        "dataset": "tiny",
        "model": "c2f2",
        "distance": "N",
        "recipe": "",
        "resolved": "hm:eta=8",
        "precision": "fp32",
        "queries": "",
        "attack_resolved": "",
        "defense": "hm",
        "label": "HM[S,g_LGA]&ICS",
        "training_cost": 9,
        "seed": 0,
        "suite": "strict",
        "attack": metric.lower().partition(":")[0],
    }
    planned = PlannedCell(
        id=identity(facts),
        facts=facts,
        about=About(**subject | about),
        columns={metric: ColumnInfo("%", "higher")},
    )
    return planned.measured({metric: Estimate(value, value - 1, value + 1, 40)}, {}, 0.0, 1.0, MADE)


def failing(one: PlannedCell, error: str = "boom") -> Cell:
    """The cell, failed."""
    return one.failed(error, ExceptionInfo("RuntimeError", None), 0.0, 1.0, MADE)


def with_facts(one: Cell, **facts: Any) -> Cell:
    """A cell that is told from ``one`` by these facts."""
    facts = one.facts | facts
    return replace(one, id=identity(facts), facts=facts)


def test_cells_come_back_by_identity(tmp_path: Path) -> None:
    store, one = Store(tmp_path), cell()
    assert store.get(one.id) is None
    store.put(one)
    assert store.done(one.id) is None  # its outcomes are not there
    store.put(one, {"CA+": np.arange(40.0)})
    assert store.outcomes(one.id)["CA+"].tolist() == list(range(40))
    found = store.done(one.id)
    assert found is not None
    assert found.metrics == one.metrics
    failed = failing(cell("CA-"))
    store.put(failed)
    assert store.done(failed.id) is None  # never cached as done
    assert store.get(failed.id) is not None
    store.path(failed.id, "parquet").write_bytes(b"of an earlier time that it did not fail")
    assert store.done(failed.id) is None
    assert len(store.cells()) == 2


STORED = """\
{
 "id": "07ac328c158faf46",
 "facts": {
  "kind": "attack",
  "checkpoint": "c0ffee",
  "about": {},
  "metric": "CA+"
 },
 "about": {
  "attack": "ca+",
  "attack_resolved": "",
  "dataset": "tiny",
  "model": "c2f2",
  "distance": "N",
  "recipe": "",
  "defense": "hm",
  "label": "HM[S,g_LGA]&ICS",
  "resolved": "hm:eta=8",
  "training_cost": 9,
  "seed": 0,
  "precision": "fp32",
  "suite": "strict",
  "queries": ""
 },
 "columns": {
  "CA+": {
   "unit": "%",
   "better": "higher"
  }
 },
 "status": "failed",
 "error": "bœm",
 "exception": {
  "type": "RuntimeError",
  "traceback": null
 },
 "metrics": {},
 "findings": {},
 "started": 0.0,
 "seconds": 1.0,
 "provenance": {
  "dmlbench": "0",
  "git": null,
  "python": "3",
  "platform": "Linux",
  "libraries": {
   "torch": "2"
  },
  "device": "cpu",
  "threads": 1,
  "argv": []
 },
 "schema": 4,
 "outcomes": null,
 "checksum": "CHECKSUM"
}
"""

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
    (tmp_path / ".old.json.x.tmp").touch()
    os.utime(tmp_path / ".old.json.x.tmp", (0, 0))
    (tmp_path / ".new.json.x.tmp").touch()  # of a writer that may be alive
    store.repair([path])
    assert store.read() == ([], [])
    assert [p.name for p in store.quarantine.iterdir()] == [path.name]
    assert [p.name for p in tmp_path.glob(".*.tmp")] == [".new.json.x.tmp"]


def test_a_cell_is_stored_as_schema_4_always_was(tmp_path: Path) -> None:
    """What is stored is read for ever: the text is that of earlier versions to the byte."""
    store, one = Store(tmp_path), failing(cell(), "bœm")
    store.put(one)
    text = (tmp_path / "cells" / f"{one.id}.json").read_text(encoding="utf-8")
    assert text == STORED.replace("CHECKSUM", one.checksum)
    content = {k: v for k, v in json.loads(text).items() if k != "checksum"}
    plain = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert one.checksum == hashlib.sha256(plain.encode()).hexdigest()
    assert store.get("07ac328c158faf46") == one
    (path,) = tmp_path.rglob("*.json")
    path.write_text(json.dumps(sealed(content | {"schema": 5, "mood": "new"})))
    with pytest.raises(UserError, match=r"schema 5.*update dmlbench"):
        store.read()


@pytest.mark.parametrize("schema", [1, 2, 3])
def test_cells_of_older_schemas_have_no_checksum_and_are_read(tmp_path: Path, schema: int) -> None:
    one = cell()
    old = {k: v for k, v in one.as_json().items() if k != "checksum"} | {"schema": schema}
    if schema < 3:
        old["about"] = {k: v for k, v in old["about"].items() if k != "queries"}
    (tmp_path / "cells").mkdir()
    path = tmp_path / "cells" / f"{one.id}.json"
    path.write_text(json.dumps(old))
    assert Store(tmp_path).get(one.id) == one
    path.write_text(json.dumps(sealed(old)))  # older versions wrote none
    assert Store(tmp_path).read() == ([], [path])


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


@pytest.mark.parametrize(
    ("metric", "estimate", "problem"),
    [
        ("CA+", Estimate(250.0, 249.0, 251.0, 40), "CA\\+ is 250; it is within 0 and 100"),
        ("CA+", Estimate(-0.01, -0.01, 0.0, 40), "within 0 and 100"),
        ("CA+", Estimate(math.nan, None, None, 40), "not JSON compliant"),
        ("CA+", Estimate(5.0, 6.0, 7.0, 40), "not within its interval"),
        ("CA+", Estimate(5.0, 4.0, 7.0, -1), "Expected `int` >= 0"),
        ("CA-", Estimate(5.0, 4.0, 7.0, 40), r"needs the metrics CA\+, got CA-"),
    ],
)
def test_a_number_that_cannot_be_is_not_stored(
    tmp_path: Path, metric: str, estimate: Estimate, problem: str
) -> None:
    store = Store(tmp_path)
    with pytest.raises(CellError, match=problem):
        store.put(replace(cell(), metrics={metric: estimate}), {"CA+": np.arange(40.0)})
    assert list(tmp_path.iterdir()) == []


def test_cells_of_schema_1_are_read_and_of_a_newer_one_refused(tmp_path: Path) -> None:
    now = [cell(), failing(cell("CA-"))]
    old, failed = ({**one.as_json(), "schema": 1} for one in now)
    (tmp_path / "cells").mkdir()
    for one in (old, failed):
        del one["outcomes"], one["about"]["queries"]
        one.pop("exception", None)
        del one["checksum"]
        (tmp_path / "cells" / f"{one['id']}.json").write_text(json.dumps(one))
    store = Store(tmp_path)
    assert store.get(old["id"]) == now[0]
    assert store.get(failed["id"]) == replace(now[1], exception=ExceptionInfo(None, None))
    assert len(store.cells()) == 2
    export(store)
    assert '"schema": 1' in (tmp_path / "cells" / f"{old['id']}.json").read_text()  # read only
    path = tmp_path / "cells" / f"{failed['id']}.json"
    path.write_text(json.dumps(sealed(failed | {"schema": 5})))
    with pytest.raises(UserError, match=r"schema 5.*update dmlbench"):
        store.cells()
    assert path.is_file()


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


def test_exports_are_the_same_bytes_whatever_the_order_of_writing(tmp_path: Path) -> None:
    cells = [cell(m, 10 + i, seed=s) for i, m in enumerate(["CA+", "CA-"]) for s in (0, 1)]
    texts = []
    for name, order in (("a", cells), ("b", cells[::-1])):
        store = Store(tmp_path / name)
        for one in order:
            store.put(one)
        texts.append([path.read_bytes() for path in export(store)])
    assert texts[0] == texts[1]
    tidy = pd.read_csv(tmp_path / "a" / "results.csv")
    assert list(tidy["metric"]) == ["CA+", "CA-", "CA+", "CA-"]
    table = pd.read_csv(tmp_path / "a" / "wide.csv")
    assert table[["seed", "CA+", "CA- low"]].to_numpy().tolist() == [[0, 10, 10], [1, 10, 10]]


def test_a_failed_cell_is_a_row_with_its_error(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(failing(cell(), 'a "quoted", odd\nerror'))
    tidy, _ = export(store)
    with tidy.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["status"] == "failed"
    assert row["error"] == 'a "quoted", odd\nerror'
    assert row["value"] == ""


def test_a_folder_with_a_failed_cell_or_a_label_of_any_text_stays_usable(tmp_path: Path) -> None:
    """Older versions stored errors and labels as they came."""
    store = Store(tmp_path)
    store.put(failing(cell(), "x\r" + "y" * 200_000 + "\x1b[2J\n"))
    store.put(cell("CA-", label="a\r\x1b[2J\tb"))
    for path in export(store):
        assert b"\r" not in path.read_bytes()
        assert b"\x1b" not in path.read_bytes()
    rows = csv_files.read_folder(tmp_path)
    assert {row["label"] for row in rows} == {cell().about.label, "a  [2J b"}
    assert {len(row["error"]) for row in rows} == {0, 200_007}
    text = (tmp_path / "results.csv").read_text()
    (tmp_path / "results.csv").write_text(text.replace("a  [2J b", "a\x1bb"))
    rows = csv_files.read_folder(tmp_path)
    assert {row["label"] for row in rows} == {cell().about.label, "a b"}


def test_ers_appears_when_its_ten_columns_do() -> None:
    values = dict(zip(ERS_COLUMNS, (10, 40, 10, 40, 0.5, 1, 20, 20, 20, 5), strict=True))
    cells = [cell(name, value) for name, value in values.items()]
    (row,) = wide(cells)
    value = (20 + 60 + 20 + 60 + 50 + 50 + 20 + 20 + 20 + 5) / 10
    assert row.estimates["ERS"].value == pytest.approx(value)
    assert row.estimates["ERS"].low is None
    (short,) = wide(cells[1:])
    assert "ERS" not in short.estimates
    (cosine,) = wide([cell(name, value, distance="C") for name, value in values.items()])
    assert "ERS" not in cosine.estimates  # defined for metric N


def test_the_interval_of_ers_is_that_of_a_cell_drawn_from_the_same_columns() -> None:
    values = dict(zip(ERS_COLUMNS, (10, 40, 10, 40, 0.5, 1, 20, 20, 20, 5), strict=True))
    cells = [cell(name, value) for name, value in values.items()]
    drawn = cell("ERS", 32.5, attack="ERS")
    drawn = replace(drawn, metrics={"ERS": Estimate(32.5, 31, 34, 40)})
    (row,) = wide([*cells, drawn])
    assert row.estimates["ERS"] == Estimate(32.5, 31, 34, 40)
    assert headings([row])[-1] == "ERS"
    cells[0] = cell("CA+", 20)  # measured again since
    (row,) = wide([*cells, drawn])
    assert row.estimates["ERS"] == Estimate(34.5, None, None, 40)
    assert "ERS" not in row.records
    broken = failing(drawn, "no disk")
    (row,) = wide([*cells, broken])
    assert (row.estimates["ERS"].value, row.failed) == (34.5, {})
    (row,) = wide([drawn])
    assert "ERS" not in row.estimates


def test_of_two_versions_of_a_cell_the_newer_counts() -> None:
    old = cell("CA+", 1, versions={"measure_version": 1, "attack_version": 1})
    new = cell("CA+", 2, versions={"measure_version": 1, "attack_version": 2})
    for order in ([old, new], [new, old]):
        (row,) = wide(order)
        assert row.estimates["CA+"].value == 2


def test_suites_are_rows_of_their_own_and_share_the_benign_metrics() -> None:
    benign = cell("R@1", 80, suite="", attack="")
    cells = [benign, cell("CA+", 1), cell("CA+", 2, suite="ers")]
    strict, ers_row = sorted(wide(cells), key=lambda row: -len(row.about["suite"]))
    assert {n: e.value for n, e in strict.estimates.items()} == {"R@1": 80, "CA+": 1}
    assert {n: e.value for n, e in ers_row.estimates.items()} == {"R@1": 80, "CA+": 2}


def test_cells_of_replaced_weights_are_left_out(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for value, checkpoint_ in ((1, "0" * 64), (2, "1" * 64)):
        store.put(
            with_facts(cell("CA+", value), training=identity({"seed": 0}), checkpoint=checkpoint_)
        )
    assert len(store.cells()) == 2  # the model is not here: both may stand
    folder = store.model_folder(identity({"seed": 0}))
    folder.mkdir(parents=True)
    write_json(folder / "manifest.json", manifest(sha256="1" * 64).as_json())
    (standing,) = store.cells()
    assert standing.metrics["CA+"].value == 2


def test_variants_have_headings_of_their_own() -> None:
    (row,) = wide([cell("CA+", 5), cell("CA+", 6, attack="ca+:w=5")])
    assert {name: e.value for name, e in row.estimates.items()} == {"CA+": 5, "CA+ (w=5)": 6}


def test_an_unwritable_folder_is_said_at_once(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    for folder in (blocked, blocked / "results", tmp_path / ("x" * 300), Path("/proc/nowhere")):
        with pytest.raises(UserError, match=r"--results .* cannot be written to") as caught:
            check_writable(folder, "--results")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(blocked / "x.json", b"1")


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


def test_a_cell_that_another_run_stores_during_an_export_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, real = Store(tmp_path), Store.cells
    store.put(cell("CA+", 1.0), {"CA+": np.ones(3)})

    def cells(self: Store) -> list[Cell]:
        found = real(self)
        if len(found) == 1:
            self.put(cell("CA-", 2.0), {"CA-": np.ones(3)})
        return found

    monkeypatch.setattr(Store, "cells", cells)
    tidy, _ = export(store)
    assert set(pd.read_csv(tidy)["metric"]) == {"CA+", "CA-"}


@pytest.mark.parametrize("text", ["1" * 19, "9" * 5000, "-1", "1.0", "\u0663", ""])
def test_a_count_in_a_csv_is_a_whole_number_of_at_most_18_digits(text: str) -> None:
    assert csv_files._count("9" * 18) == 10**18 - 1
    with pytest.raises(ValueError, match="whole number"):
        csv_files._count(text)


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


def test_what_was_measured_on_other_data_is_another_row() -> None:
    """The images of a folder may change, and its spelling stays."""
    before = [cell("R@1", 80, suite="", attack=""), cell("TMA", 0.5, attack="tma")]
    after = [cell("R@1", 70, suite="", attack=""), cell("ES:D", 0.9, attack="es")]
    cells = [with_facts(one, data="a") for one in before]
    cells += [with_facts(one, data="b") for one in after]
    found = [{name: e.value for name, e in row.estimates.items()} for row in wide(cells)]
    found.sort(key=lambda values: -values["R@1"])
    assert found == [{"R@1": 80, "TMA": 0.5}, {"R@1": 70, "ES:D": 0.9}]


@pytest.mark.parametrize(
    ("argument", "kept"),
    [
        ("/home/me/sweep.yaml", "sweep.yaml"),
        ("--results=/home/me/runs", "--results=runs"),
        ("folder:root=/data/my set,train_list=/data/a.txt", "folder:root=my set,train_list=a.txt"),
        ("runs/mine", "runs/mine"),
        ("es:eps=8/255,alpha=3/255", "es:eps=8/255,alpha=3/255"),
        ("ray://host:10001", "ray://host:10001"),
        ("--queries", "--queries"),
    ],
)
def test_provenance_names_no_folder_of_the_machine(argument: str, kept: str) -> None:
    assert without_folders(argument) == kept
