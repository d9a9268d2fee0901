"""Rows of a table: which cells make one, which column each fills, and combined scores."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from dmlbench.analysis.records import headings, wide
from dmlbench.common.files import write_json
from dmlbench.common.hashing import identity
from dmlbench.core.naming import parameters
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.metrics.ers import ERS_COLUMNS
from dmlbench.storage.store import Store
from tests import synthetic
from tests.cells import cell, failing, manifest, with_facts


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


def test_a_number_of_an_older_version_does_not_stand_in_for_a_cell_that_failed() -> None:
    """Nor is a score drawn from it. A failure of the same version does not hide a number."""
    cells = [cell(n, 1.0, suite="ers", versions={"attack_version": 1}) for n in ERS_COLUMNS]
    newer = cell("CA-", 2.0, suite="ers", versions={"attack_version": 2})
    (row,) = wide([*cells, failing(newer, "no disk")])
    assert {name: one["error"] for name, one in row.failed.items()} == {"CA-": "no disk"}
    assert "CA-" not in row.estimates
    assert "CA-" not in row.records
    assert "ERS" not in row.estimates
    worst = cell("Robust R@1", 3.0, suite="ers", attack="worst case")
    (row,) = wide([*cells, worst])
    assert "Robust R@1" in row.estimates
    newer = cell("ES:R", 2.0, suite="ers", versions={"attack_version": 2})
    (row,) = wide([*cells, worst, failing(newer, "no disk")])
    assert not row.estimates.keys() & {"Robust R@1", "ERS", "ES:R"}
    (row,) = wide([*cells, failing(cells[1], "no disk")])
    assert not row.failed
    assert "ERS" in row.estimates


def test_a_score_has_another_radius_only_if_eps_is_a_key() -> None:
    """``steps=64`` ends with letters of ``eps=`` too."""
    for changed, scored in (("steps=64", False), ("eps=4/255", True)):
        cells = [synthetic.attacked(n, v, changed) for n, v in synthetic.FULL.items()]
        (row,) = wide(cells)
        assert (f"ERS ({changed})" in row.estimates) is scored
    worst = cell("Robust R@1", 3.0, attack="worst case:es:restarts=5,steps=64")
    lost = failing(cell("ES:R", 2.0), "no disk")
    (row,) = wide([worst, lost])
    assert not row.estimates


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


def test_what_was_measured_on_other_data_is_another_row() -> None:
    """The images of a folder may change, and its spelling stays."""
    before = [cell("R@1", 80, suite="", attack=""), cell("TMA", 0.5, attack="tma")]
    after = [cell("R@1", 70, suite="", attack=""), cell("ES:D", 0.9, attack="es")]
    cells = [with_facts(one, data="a") for one in before]
    cells += [with_facts(one, data="b") for one in after]
    found = [{name: e.value for name, e in row.estimates.items()} for row in wide(cells)]
    found.sort(key=lambda values: -values["R@1"])
    assert found == [{"R@1": 80, "TMA": 0.5}, {"R@1": 70, "ES:D": 0.9}]


def test_the_keys_of_a_spec_in_quotes_are_not_those_of_the_attack() -> None:
    text = r'transfer:from=w@1a,by="margin:eps=2/255,note=\"x,y=1\"",eps=8/255'
    quoted = r'"margin:eps=2/255,note=\"x,y=1\""'
    assert parameters(text) == {"from": "w@1a", "by": quoted, "eps": "8/255"}


def test_a_heading_names_the_weights_of_another_model_without_their_network() -> None:
    specs = {
        'transfer:from=w@5793,network="timm:name=x,head=none",by=es': "from=w@5793,by=es",
        "transfer:from=w@5793": "from=w@5793",
        "ca+:w=5": "w=5",
    }
    found = headings(wide([cell("Transfer", 80, attack=attack) for attack in specs]))
    assert sorted(found) == sorted(f"Transfer ({changed})" for changed in specs.values())
