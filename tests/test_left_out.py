"""The measurements that a comparison leaves out are named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import dmlbench as dml
from dmlbench.analysis import unpaired
from dmlbench.analysis.compare import find
from dmlbench.analysis.csv_files import export
from dmlbench.analysis.differences import of_names
from dmlbench.analysis.left_out import left_out
from dmlbench.cli.compare import compare as command
from dmlbench.storage.store import Store
from tests.comparisons import N, put, with_interval


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(50, 20, N)


def test_what_one_model_has_alone_is_said_to_be_left_out(tmp_path: Path, noise: np.ndarray) -> None:
    store = Store(tmp_path)
    for name in ("none", "hm"):
        put(store, name, noise)
    assert of_names("none", "hm", tmp_path, None).left_out == ""
    for name, queries in (("none", "10"), ("hm", "20")):
        put(store, name, noise, attack="es:steps=1", attack_resolved="es:steps=1", queries=queries)
    put(store, "hm", noise, attack="ca+:steps=2", attack_resolved="ca+:w=1,steps=2")
    put(store, "none", noise, attack="ltm", attack_resolved="ltm:w=1")
    put(store, "hm", noise, attack="ltm", attack_resolved="ltm:w=1", versions=(1, 2))
    said = (
        "left out: only A has es:steps=1 with 10 queries; only B has ca+:steps=2; es:steps=1 with "
        "20 queries; of other versions or seeds are ltm"
    )
    asked = ["none", "hm", "--results", str(tmp_path), "--json"]
    done = CliRunner().invoke(command, asked, catch_exceptions=False)
    assert done.stderr == f"note: {said}\n"
    assert {one["attack"] for one in json.loads(done.stdout)} == {"ca+"}
    with pytest.warns(UserWarning, match=re.escape(said)):
        dml.compare("none", "hm", results=tmp_path)
    export(store)
    a, b = (unpaired.find(n, with_interval(tmp_path / "results.csv"), None) for n in ("none", "hm"))
    assert left_out(a, b) == said


def test_of_many_that_are_left_out_a_few_are_named(tmp_path: Path, noise: np.ndarray) -> None:
    store = Store(tmp_path)
    put(store, "none", noise)
    (record,) = [r for r in find("none", store, None).records if r["metric"] == "CA+"]
    more = [record | {"attack": f"es:w={i}", "attack_resolved": f"es:w={i}"} for i in range(9)]
    assert left_out([record], [record, *more]) == (
        "left out: only B has es:w=0, es:w=1, es:w=2, es:w=3 and 5 more"
    )
    assert left_out(more, [one | {"queries": "20", "suite": "auto"} for one in more]) == (
        "left out: only A has es:w=0, es:w=1, es:w=2, es:w=3 and 5 more with suite strict; "
        "only B has es:w=0, es:w=1, es:w=2, es:w=3 and 5 more with suite auto"
    )
