"""Paired differences between two models, computed from a store of invented cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import t as students_t

import dmlbench as dml
from dmlbench.analysis import unpaired
from dmlbench.analysis.compare import compare, find
from dmlbench.analysis.csv_files import export
from dmlbench.analysis.differences import of_names
from dmlbench.analysis.lookup import as_stored, cells_of, checkpoint_path
from dmlbench.cli.compare import compare as command
from dmlbench.common.errors import UserError
from dmlbench.common.files import write_json
from dmlbench.metrics.names import WORST_CASE
from dmlbench.storage.store import Store
from dmlbench.submission.row import chosen_row
from dmlbench.submission.submit import _chosen
from dmlbench.sweep.external_rows import find_row
from tests.cells import manifest, with_facts
from tests.comparisons import N, digest, put, with_interval


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(50, 20, N)


def test_a_difference_is_taken_query_by_query(tmp_path: Path, noise: np.ndarray) -> None:
    store = Store(tmp_path)
    shift = np.random.default_rng(1).normal(1.0, 2.0, N)
    put(store, "none", noise)
    put(store, "hm", noise + shift)
    (found,) = compare(find("none", store, None), find("HM", store, None))
    assert (found.attack, found.metric, found.seeds, found.difference.n) == (
        "ca+",
        "CA+",
        ((0, 0),),
        N,
    )
    assert found.a == pytest.approx(noise.mean())
    assert found.difference.value == pytest.approx(shift.mean())
    assert found.b - found.a == pytest.approx(found.difference.value)
    # the interval is that of the differences, not of the far noisier numbers
    half = 1.96 * shift.std(ddof=1) / np.sqrt(N)
    assert found.difference.low == pytest.approx(shift.mean() - half, abs=0.1 * half)
    assert found.difference.high == pytest.approx(shift.mean() + half, abs=0.1 * half)
    assert found.favours == "B"
    (swapped,) = compare(find("hm", store, None), find("none", store, None))
    assert swapped.difference.value == pytest.approx(-found.difference.value)
    assert swapped.favours == "A"


def test_queries_that_do_not_count_for_both_are_left_out(tmp_path: Path, noise: np.ndarray) -> None:
    store = Store(tmp_path)
    holes = noise.copy()
    holes[:7] = np.nan
    put(store, "none", holes)
    put(store, "hm", noise)
    (found,) = compare(find("none", store, None), find("hm", store, None))
    assert found.difference.n == N - 7
    assert found.difference.value == 0
    assert found.favours == ""


def test_seeds_are_averaged_over_those_that_both_have(tmp_path: Path, noise: np.ndarray) -> None:
    store = Store(tmp_path)
    for seed in (0, 1, 2):
        put(store, "none", noise + seed, seed)
    for seed in (1, 2, 3):
        put(store, "hm", noise + 10 * seed, seed)
    (found,) = compare(find("none", store, None), find("hm", store, None))
    assert found.seeds == ((1, 1), (2, 2))
    assert found.difference.value == pytest.approx(15 - 1.5)
    # 9 in seed 1 and 18 in seed 2, of every query: Student's t with one degree of freedom
    reach = students_t.ppf(0.975, 1) * np.std([9, 18], ddof=1) / np.sqrt(2)
    assert found.difference.low == pytest.approx(13.5 - reach)
    assert found.difference.high == pytest.approx(13.5 + reach)


def test_attacks_of_another_seed_are_no_further_training(tmp_path: Path, noise: np.ndarray) -> None:
    store = Store(tmp_path)
    for name, shift in (("none", 0.0), ("hm", 1.0)):
        put(store, name, noise + shift)
        put(store, name, noise + 2 * shift, attack="ca+:attack_seed=5")
    found = compare(find("none", store, None), find("hm", store, None))
    assert [(one.attack, one.seeds) for one in found] == [
        ("ca+", ((0, 0),)),
        ("ca+:attack_seed=5", ((0, 0),)),
    ]
    assert [one.difference.value for one in found] == [pytest.approx(1), pytest.approx(2)]


def test_checkpoints_of_two_result_folders(tmp_path: Path, noise: np.ndarray) -> None:
    sides = []
    for name, values in (("one", noise), ("two", noise - 1)):
        store = Store(tmp_path / name)
        put(store, "hm", values, seed=len(sides))
        folder = store.model_folder("id")
        folder.mkdir(parents=True)
        write_json(folder / "manifest.json", manifest(sha256=digest(f"hm{len(sides)}")).as_json())
        sides.append(find(str(folder), Store(tmp_path / "elsewhere"), None))
    (found,) = compare(*sides)
    assert found.difference.value == pytest.approx(-1)
    assert found.favours == "A"
    assert found.seeds == ((0, 1),)


def test_data_sets_are_not_mixed(tmp_path: Path, noise: np.ndarray) -> None:
    """A checkpoint that was measured on two: its numbers on one are never those on the other."""
    store = Store(tmp_path)
    put(store, "a", noise, dataset="tiny")
    put(store, "a", noise[: N - 1] + 40, dataset="other", resolved="a:resolved=1")
    put(store, "b", noise + 10, dataset="tiny")
    path = tmp_path / "a.pt"
    path.write_bytes(b"a0")  # of which digest("a0") is the SHA-256
    with pytest.raises(UserError, match="measured on several data sets: add --dataset other, or"):
        find(str(path), store, None)
    (found,) = compare(find(str(path), store, "tiny"), find("b", store, "tiny"))
    assert found.difference.value == pytest.approx(10)


def test_precisions_are_not_mixed(tmp_path: Path, noise: np.ndarray) -> None:
    store = Store(tmp_path)
    for precision, shift in (("fp32", 1), ("bf16", 3)):
        put(store, "none", noise, precision=precision)
        put(store, "hm", noise + shift, precision=precision)
    found = compare(find("none", store, None), find("hm", store, None))
    assert {(one.precision, round(one.difference.value)) for one in found} == {
        ("fp32", 1),
        ("bf16", 3),
    }
    asked = ["none", "hm", "--results", str(tmp_path)]
    shown = CliRunner().invoke(command, asked, catch_exceptions=False).output
    assert [line.split()[3] for line in shown.splitlines() if "CA+" in line] == ["bf16", "fp32"]
    heads = next(line for line in shown.splitlines() if "metric" in line)
    assert heads.split()[:3] == ["attack", "metric", "precision"]  # which alone differs
    frame = dml.compare("none", "hm", results=tmp_path)
    assert frame.set_index("precision")["difference"].round().to_dict() == {"fp32": 1, "bf16": 3}


def test_definitions_are_not_mixed(tmp_path: Path, noise: np.ndarray) -> None:
    """Neither by the outcomes of queries nor by the rows of a CSV; the newest one counts."""
    store = Store(tmp_path)
    put(store, "none", noise, versions=(1, 1))
    put(store, "hm", noise + 5, versions=(1, 2))
    sides = [find(name, store, None) for name in ("none", "hm")]
    with pytest.raises(UserError, match="share no measurement: run the same attacks on both"):
        compare(*sides)
    rows = [[r | {"low": 40.0, "high": 60.0} for r in side.records] for side in sides]
    with pytest.raises(UserError, match="share no measurement"):
        unpaired.compare(*rows, ["none", "hm"])
    put(store, "none", noise + 2, versions=(1, 2))
    (found,) = compare(find("none", store, None), sides[1])
    assert found.difference.value == pytest.approx(3)


def test_a_score_has_the_definitions_of_its_columns(tmp_path: Path, noise: np.ndarray) -> None:
    """Whose versions are 0, as it is only drawn from other numbers."""
    store = Store(tmp_path)
    put(store, "none", noise)
    record = find("none", store, None).records[0] | {"low": 40.0, "high": 60.0}

    def side(by: str, at: str = "") -> list[dict[str, Any]]:
        made = (("ca+", "CA+", "1.1"), ("es", "ES:R", by), ("worst case", "Robust R@1", "0.0"))
        return [
            record | {"attack": name + at, "metric": metric, "versions": versions}
            for name, metric, versions in made
        ]

    def compared(ours: list[Any], theirs: list[Any]) -> set[str]:
        return {one.metric for one in unpaired.compare(ours, theirs, ["a", "b"])}

    every = {"CA+", "ES:R", "Robust R@1"}
    assert compared(side("1.1"), side("1.1")) == every
    assert compared(side("1.1"), side("1.2")) == {"CA+"}
    other = [*side("1.1"), *side("1.1", ":eps=4/255")]
    assert compared(other, side("1.1", ":eps=4/255")) == every  # only one has the other radius
    (restarts,) = (one for one in side("1.1", ":es:restarts=5") if one["attack"][0] == "w")
    assert compared([*side("1.1"), restarts], [*side("1.1"), restarts]) == every
    assert compared([*side("1.1"), restarts], [*side("1.2"), restarts]) == {"CA+"}


def test_a_number_keeps_the_definition_that_it_was_measured_by(
    tmp_path: Path, noise: np.ndarray
) -> None:
    """Also beside a newer one of the same attack, on other images or with other values."""
    store = Store(tmp_path)
    put(store, "none", noise)
    record = find("none", store, None).records[0] | {"low": 40.0, "high": 60.0}
    for changed in ({"data": "others"}, {"attack_resolved": "ca+:w=2"}):
        mine = [record, record | changed | {"versions": "1.2"}]
        with pytest.raises(UserError, match="share no measurement"):
            unpaired.compare(mine, [record | {"versions": "1.2"}], ["a", "b"])
        (found,) = unpaired.compare(mine, [record], ["a", "b"])
        assert found.data == "pixels"


def test_a_score_of_an_older_version_is_of_the_only_images(
    tmp_path: Path, noise: np.ndarray
) -> None:
    """It does not name them, neither in cells nor in rows."""
    store = Store(tmp_path)
    put(store, "none", noise)
    attack = find("none", store, None).records[0] | {"low": 40.0, "high": 60.0}
    score = attack | {"attack": "ERS", "attack_resolved": "", "metric": "ERS"}
    found = unpaired.compare([attack, score | {"data": ""}], [attack, score], ["a", "b"])
    assert [(one.metric, one.data) for one in found] == [("ERS", "pixels"), ("CA+", "pixels")]


def test_a_cell_without_its_outcomes_is_not_measured(tmp_path: Path, noise: np.ndarray) -> None:
    store = Store(tmp_path)
    put(store, "none", noise)
    next(tmp_path.rglob("*.parquet")).unlink()
    with pytest.raises(UserError, match="nothing was measured of 'none'"):
        find("none", store, None)


def test_submit_says_what_tells_the_models_of_a_name_apart(
    tmp_path: Path, noise: np.ndarray
) -> None:
    store = Store(tmp_path)
    for model in ("c2f2", "lenet"):
        put(store, "none", noise, model=model)
    with pytest.raises(UserError, match="'none' is 2 models in") as error:
        _chosen(store, "none", ())
    digests = [digest(f"none0{model}")[:12] for model in ("c2f2", "lenet")]
    assert f"(model=c2f2 checkpoint_sha256={digests[0]}*; model=lenet " in str(error.value)
    for where in (f"checkpoint_sha256={digests[1]}*", "model=lenet"):
        assert [c.about.model for c in _chosen(store, "none", [where])] == ["lenet"]
    assert len(_chosen(store, "none", ["data=pix*", "model=c2f2"])) == 1


def test_rows_of_a_name_are_told_apart_by_their_images(tmp_path: Path, noise: np.ndarray) -> None:
    """And those of one model by the digest of its weights: verify-attack takes one row."""
    store = Store(tmp_path)
    for kind, attack, sources in (("attack", "es", []), (WORST_CASE, WORST_CASE, ["es"])):
        for data in ("first", "later"):
            put(store, "none", noise, attack=attack)
            (cell,) = [
                c for c in store.cells() if c.about.attack == attack and c.facts["data"] == "pixels"
            ]
            store.remove(cell.id)
            cells = [
                c.id for c in store.cells() if c.about.attack in sources and c.facts["data"] == data
            ]
            facts = {"kind": kind, "data": data, "cells": cells, "attack_values": {"eps": 0.1}}
            store.put(with_facts(cell, **facts), {"CA+": noise, "CA+ clean": noise})
    with pytest.raises(UserError, match=r"'none' is 2 rows \(data=first\*; data=later\*\): choose"):
        find_row(store, "none")
    row = find_row(store, "none", ["data=later*"])
    assert [cell.facts["data"] for cell in row.worst] == ["later"]
    assert find_row(store, "none", ["data=first*", "checkpoint_sha256=*"]).eps == 0.1


def test_a_checkpoint_near_the_root_is_looked_for(tmp_path: Path) -> None:
    file = Path("/dmlbench-test-weights")
    try:
        file.write_bytes(b"weights")
    except OSError:
        pytest.skip("the root folder is not writable")
    try:
        with pytest.raises(UserError, match="no results in"):
            find(str(file), Store(tmp_path), None)
    finally:
        file.unlink()


def test_a_file_that_is_called_like_a_model_is_not_taken_for_it(
    tmp_path: Path, noise: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "results")
    for name in ("none", "mine"):
        put(store, name, noise)
    Path("none").mkdir()
    Path("mine").write_text("notes")
    cells = store.cells()
    assert [find(name, store, None).records[0]["defense"] for name in ("none", "mine")] == [
        "none",
        "mine",
    ]
    assert checkpoint_path("none", cells) is checkpoint_path("mine", cells) is None
    assert checkpoint_path("hm", cells) is None
    assert checkpoint_path("./mine", cells) == Path("mine")
    assert [cell.about.defense for cell in cells_of("mine", cells)] == ["mine"]
    assert cells_of("./mine", cells) == cells_of(Path("mine"), cells) == []
    assert [cell.about.label for cell in _chosen(store, "none", ())] == ["NONE"]
    with pytest.raises(UserError, match="has no Robust R@1"):  # the row itself is found
        find_row(store, "mine")
    with pytest.raises(UserError, match="no model's folder"):
        find("./none", store, None)


def test_a_collapsed_model_is_no_better_one_without_a_note(
    tmp_path: Path, noise: np.ndarray
) -> None:
    store = Store(tmp_path)
    put(store, "none", noise)
    put(store, "hm", noise + 1)
    asked = ["none", "hm", "--results", str(tmp_path)]
    assert "note" not in CliRunner().invoke(command, asked, catch_exceptions=False).stderr
    (theirs,) = (one for one in store.cells() if one.about.defense == "hm")
    store.remove(theirs.id)
    theirs.findings["collapsed"] = True
    store.put(theirs, {"CA+": noise + 1})
    assert of_names("none", "hm", tmp_path, None).collapsed == ("B",)
    said = CliRunner().invoke(command, asked, catch_exceptions=False).stderr
    assert "note: B has collapsed (it retrieves nothing any more)" in said


def test_mistakes(tmp_path: Path, noise: np.ndarray) -> None:
    store = Store(tmp_path)
    put(store, "hm", noise)
    put(store, "hm", noise, model="lenet")
    put(store, "act", noise, attack_resolved="ca+:w=5")
    put(store, "est", noise)
    with pytest.raises(UserError, match=r"nothing was measured of 'none'.*act, est, hm"):
        find("none", store, None)
    with pytest.raises(UserError, match=r"'hm' is several models.*c2f2.*lenet.*name a checkpoint"):
        find("hm", store, None)
    with pytest.raises(UserError, match="est and act share no measurement"):
        compare(find("est", store, None), find("act", store, None))
    with pytest.raises(UserError, match="is no model's folder"):
        find(str(tmp_path), store, None)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        find(str(tmp_path), store, None)
    with pytest.raises(UserError, match=r"nothing was measured of 'est'.*there: .*est on tiny"):
        find("est", store, "cub")
    for name in ("est", str(tmp_path / "manifest.json")):
        with pytest.raises(UserError, match=r"no results in .*nowhere: begin with 'dmlbench run"):
            of_names(name, name, tmp_path / "nowhere", None)


def test_rows_are_named_by_the_first_digits_of_their_weights(
    tmp_path: Path, noise: np.ndarray
) -> None:
    """By as many, and in any letter case, wherever weights are named."""
    store = Store(tmp_path)
    put(store, "hm", noise)
    rows = with_interval(export(store)[0])
    for name in (digest("hm0")[:8], digest("hm0")[:9].upper(), digest("hm0").upper()):
        assert len(unpaired.find(name, rows, None)) == 1
        assert len(chosen_row(name, tmp_path, ())[0]) == 2
    for refuse in (lambda n: unpaired.find(n, rows, None), lambda n: chosen_row(n, tmp_path, ())):
        with pytest.raises(UserError, match=r"'.{7}'"):
            refuse(digest("hm0")[:7])
    other = [one | {"dataset": "other"} for one in rows]
    with pytest.raises(UserError, match="several data sets: add --dataset other, or tiny"):
        unpaired.find(digest("hm0"), [*rows, *other], None)


def test_a_data_set_is_found_by_any_spelling(tmp_path: Path, noise: np.ndarray) -> None:
    """Of cells, of a CSV of an early version, and of a data set that is registered no more."""
    store, rows = Store(tmp_path / "cells"), tmp_path / "rows"
    shown = "folder:size=32,root=photos"
    for dataset in (shown, "gone:size=3"):
        put(store, "none", noise, dataset=dataset)
        put(store, "hm", noise + 1, dataset=dataset)
    rows.mkdir()
    text = export(store)[0].read_text()
    (rows / "early.csv").write_text(text.replace("root=photos", "root=./photos/"))
    for spelled in ("folder:root=./photos/,size=32", shown, "gone:size=3"):
        (store.root / "own.csv").write_text("a,b\n1,2\n")  # is not read where cells are enough
        found = of_names("none", "hm", store.root, spelled)
        assert found.differences[0].difference.value == pytest.approx(1)
        with pytest.raises(UserError, match="share no measurement with an interval"):
            of_names("none", "hm", rows, spelled)  # both are found
    for name, reason in (
        ("nosuch", "unknown data set 'nosuch'"),
        ("cub", "'none' on cub; measured: hm on folder"),
    ):
        with pytest.raises(UserError, match=reason):
            of_names("none", "hm", rows, name)


@pytest.mark.usefixtures("registries")
def test_a_defense_is_found_by_any_spelling_that_a_run_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("grey.py").write_text(
        "from dataclasses import dataclass\n"
        "from dmlbench.core.registry import Card\n"
        "from dmlbench.core.spec import parameter\n"
        "from dmlbench.defenses.none import NoDefense\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Grey(NoDefense):\n"
        "    card = Card('grey', 'the triplet loss on grey images')\n"
        "    share: float = parameter(0.5, 'how grey', at_least=0)\n"
    )
    spelt = {
        "grey.py:Grey": "grey",
        "grey.py:Grey:share=0.25": "grey:share=0.25",
        "hm:ics=0,source=random": "hm:source=random,ics=0",
        "hm:gone=1": "hm:gone=1",  # as an old row may be called
        "HM[S,g_LGA]&ICS": "HM[S,g_LGA]&ICS",
        "results/models/0123": "results/models/0123",
    }
    assert {name: as_stored(name) for name in spelt} == spelt
    with pytest.raises(UserError, match="has no attribute 'Gray'; did you mean 'Grey'"):
        as_stored("grey.py:Gray")
