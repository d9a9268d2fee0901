"""Cells on disk: found by their identity, read for ever, and refused with an impossible number."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dmlbench.analysis.csv_files import export
from dmlbench.common.errors import CellError, UserError
from dmlbench.common.hashing import derived_seed, identity, sealed
from dmlbench.compute.provenance import provenance, without_folders
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.storage.cell import ExceptionInfo
from dmlbench.storage.store import WRITTEN, Store
from tests.cells import cell, failing

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


def test_an_argument_that_is_no_text_costs_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["dmlbench", "run", "--config", "/a/r\udcff.yaml"])
    one = replace(cell(), provenance=provenance(None))
    Store(tmp_path).put(one)
    assert Store(tmp_path).cells()[0].provenance.argv == ["run", "--config", "r?.yaml"]


def test_every_file_that_a_results_folder_is_written_to_has_a_pattern(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(cell(), {"CA+": np.ones(3)})
    export(store)
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert files <= {path for pattern in WRITTEN for path in tmp_path.glob(pattern)}


def test_a_cell_is_stored_as_schema_4_always_was(tmp_path: Path) -> None:
    """Stored cells are read for ever: the text is that of earlier versions to the byte."""
    store, one = Store(tmp_path), failing(cell(), "bœm")
    store.put(one)
    text = (tmp_path / "cells" / f"{one.id}.json").read_text(encoding="utf-8")
    checksum = one.as_json()["checksum"]
    assert text == STORED.replace("CHECKSUM", checksum)
    content = {k: v for k, v in json.loads(text).items() if k != "checksum"}
    plain = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert checksum == hashlib.sha256(plain.encode()).hexdigest()
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


def test_a_folder_has_one_spelling_in_cells_of_older_versions(tmp_path: Path) -> None:
    store, old = Store(tmp_path), cell(dataset="folder:root=./p/,train_classes=2")
    store.put(old)
    (found,) = store.cells()
    assert found.about.dataset == "folder:root=p,train_classes=2"
    assert found.id == old.id


@pytest.mark.parametrize(
    ("metric", "estimate", "problem"),
    [
        ("CA+", Estimate(250.0, 249.0, 251.0, 40), "CA\\+ is 250; it is within 0 and 100"),
        ("CA+", Estimate(-0.01, -0.01, 0.0, 40), "within 0 and 100"),
        ("CA+", Estimate(math.nan, None, None, 40), "not JSON compliant"),
        ("CA+", Estimate(5.0, 6.0, 7.0, 40), "not within its interval"),
        ("CA+", Estimate(5.0, 4.0, 107.0, 40), "CA\\+ is 107; it is within 0 and 100"),
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


@pytest.mark.parametrize(
    ("argument", "kept"),
    [
        ("/home/me/sweep.yaml", "sweep.yaml"),
        ("--results=/home/me/runs", "--results=runs"),
        ("folder:root=/data/my set,train_list=/data/a.txt", "folder:root=my set,train_list=a.txt"),
        ('folder:root="/home/me/my, set",size=64', 'folder:root="my, set",size=64'),
        ("attack=a|/home/me/b", "attack=a|b"),
        ("../../home/me/nets.py:make", "nets.py:make"),
        ("~/runs", "runs"),
        ("~me/runs", "runs"),
        ("runs/mine", "runs/mine"),
        ("es:eps=8/255,alpha=3/255", "es:eps=8/255,alpha=3/255"),
        ("ray://host:10001", "ray://host:10001"),
        ("--queries", "--queries"),
    ],
)
def test_provenance_names_no_folder_of_the_machine(argument: str, kept: str) -> None:
    assert without_folders(argument) == kept
