"""``merge``: cells and models of several folders of results become one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from dmlbench.analysis.csv_files import export
from dmlbench.cli.main import main
from dmlbench.common.errors import UserError
from dmlbench.common.files import write_json
from dmlbench.common.hashing import file_sha256, identity
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.storage import checkpoint
from dmlbench.storage.cell import Cell, ColumnInfo
from dmlbench.storage.merge import Merged, merge
from dmlbench.storage.store import Store
from tests.cells import cell, failing
from tests.plans import ran, trainings


def filled(root: Path, *cells: Cell) -> Store:
    store = Store(root)
    for one in cells:
        store.put(one, {name: np.arange(4.0) for name in one.metrics})
    return store


def test_merging_keeps_what_is_there_and_takes_what_is_better(tmp_path: Path) -> None:
    same, more = cell("CA+"), cell("CA-")
    failed = failing(more)
    target = filled(tmp_path / "a", same, failed)
    source = filled(tmp_path / "b", replace(same, seconds=9.0), more, cell("TMA"))
    merged = merge(source, target, pytest.fail)
    assert merged.cells == 2
    assert [c.status for c in target.cells()] == ["ok"] * 3
    found = target.get(same.id)
    assert found is not None
    assert found.seconds == 1.0
    assert target.outcomes(more.id)["CA-"].tolist() == [0, 1, 2, 3]
    assert merge(source, target, pytest.fail).cells == 0
    with pytest.raises(UserError, match="holds no results"):
        merge(Store(tmp_path / "nowhere"), target, pytest.fail)


def test_merging_warns_of_two_models_of_one_name(tmp_path: Path) -> None:
    """Of weights whose training is unknown; tables show one of them."""

    def own(name: str, weights: str) -> Store:
        one = cell("CA+", label="best")
        facts = {k: v for k, v in one.facts.items() if k != "training"} | {"checkpoint": weights}
        return filled(tmp_path / name, replace(one, facts=facts, id=identity(facts)))

    said: list[str] = []
    for name, weights in (("b", "1"), ("c", "1"), ("d", "2")):
        merge(own(name, weights), Store(tmp_path / "a"), said.append)
    (line,) = said
    assert "have other weights under the names 'best'" in line


def test_merging_says_which_outcomes_are_missing_and_mends_those_of_the_target(
    tmp_path: Path,
) -> None:
    source, target = (filled(tmp_path / name, cell("CA+"), cell("CA-")) for name in "ab")
    lost = source.path(cell("CA-").id, "parquet")
    said: list[str] = []
    lost.unlink()
    assert merge(source, target, said.append).cells == 0  # the target has them
    assert said == []
    target.path(cell("CA+").id, "parquet").unlink()
    assert merge(source, target, said.append).cells == 1
    assert target.done(cell("CA+").id) is not None
    empty = Store(tmp_path / "c")
    assert merge(source, empty, said.append).cells == 1
    assert [text.endswith("are missing, so it is left behind") for text in said] == [True]


def test_merging_takes_the_wider_of_two_cells_and_its_adversarial_images(tmp_path: Path) -> None:
    plain = cell("CA+")
    more = {"R@1": Estimate(50.0, 49.0, 51.0, 40)}
    images = tmp_path / "b" / "adversarial" / f"{plain.id}.npz"
    images.parent.mkdir(parents=True)
    images.write_bytes(b"images")
    wide = replace(
        plain,
        metrics=plain.metrics | more,
        columns=plain.columns | {"R@1": ColumnInfo("%", "higher")},
        findings={"adversarial_sha256": file_sha256(images)},
    )
    target, source = filled(tmp_path / "a", plain), filled(tmp_path / "b", wide)
    assert merge(target, source, pytest.fail).cells == 0
    assert merge(source, target, pytest.fail).cells == 1
    assert merge(source, target, pytest.fail).cells == 0
    found = target.done(plain.id)
    assert found is not None
    assert found.metrics == wide.metrics
    assert list(target.outcomes(plain.id)) == ["CA+", "R@1"]
    assert target.images(plain.id).read_bytes() == b"images"
    images.write_bytes(b"others")
    said: list[str] = []
    assert merge(source, Store(tmp_path / "c"), said.append).cells == 1
    assert said == [f"{images} is damaged (SHA-256 differs) and left behind"]
    assert not Store(tmp_path / "c").images(plain.id).exists()


def test_merging_changes_no_number_of_the_target(tmp_path: Path) -> None:
    """Nor does it bring a score that is drawn from another one, or take images away."""
    ours, theirs = cell("ES:R", 30), cell("ES:R", 40)
    more = {"R@1": Estimate(50.0, 49.0, 51.0, 40)}
    wide = replace(
        theirs,
        metrics=theirs.metrics | more,
        columns=theirs.columns | {"R@1": ColumnInfo("%", "higher")},
    )
    score = cell("ERS", 10)
    facts = score.facts | {"cells": [ours.id]}
    score = replace(score, facts=facts, id=identity(facts))
    target, source = filled(tmp_path / "a", ours), filled(tmp_path / "b", wide, score)
    said: list[str] = []
    assert merge(source, target, said.append).cells == 0
    assert [one.metrics for one in target.cells()] == [ours.metrics]
    assert said == [
        f"1 of the cells in {source.root} have other numbers than the same ones in {target.root}, "
        "which stand; scores drawn from them are left behind, and a run draws those of the target"
    ]
    said.clear()
    pictured = replace(theirs, findings={"adversarial_sha256": "0" * 64})
    target = filled(tmp_path / "c", pictured)
    assert merge(source, target, said.append).cells == 1  # the score
    stands = target.get(ours.id)
    assert stands is not None
    assert stands.findings == pictured.findings
    (line,) = said
    assert line.startswith(f"{source.path(ours.id)} has more columns than that of {target.root}")


def test_merging_models(tmp_path: Path) -> None:
    found, said = trainings(defenses=("none",)), []
    one, two = Store(tmp_path / "a"), Store(tmp_path / "b")
    ran(one, found)
    assert merge(one, two, pytest.fail).models == 1
    bare = Store(tmp_path / "models alone")
    shutil.copytree(one.root / "models", bare.root / "models")
    assert merge(bare, Store(tmp_path / "d"), pytest.fail) == Merged(0, 1)
    assert len(ran(two, found)[1]) == 6
    assert ran(two, found)[2] == []
    other = Store(tmp_path / "c")
    ran(other, found)
    folder = other.model_folder(found[0].id)
    (folder / checkpoint.WEIGHTS).write_bytes(b"other")
    made = checkpoint.read_manifest(folder)
    assert made is not None
    made = replace(made, sha256=file_sha256(folder / checkpoint.WEIGHTS))
    write_json(folder / checkpoint.MANIFEST, made.as_json())
    ran(other, found)  # measured again, of the other weights
    cells = Store(tmp_path / "cells alone")
    shutil.copytree(two.root / "cells", cells.root / "cells")
    before = {c.id for c in two.cells()}
    for target in (two, cells):
        said.clear()
        assert merge(other, target, said.append) == Merged(0, 0)
        assert len(said) == 1
        assert "other weights" in said[0]
        assert {c.id for c in target.cells()} == before
    assert merge(one, cells, pytest.fail) == Merged(0, 1)  # the weights that they are of
    assert {c.id for c in cells.cells()} == before
    alone = Store(tmp_path / "other cells alone")
    shutil.copytree(other.root / "cells", alone.root / "cells")
    own = {c.id for c in other.cells()} - before
    said.clear()
    assert merge(alone, two, said.append) == Merged(0, 0)
    assert len(said) == 1
    assert f"other weights than model {found[0].id}" in said[0]
    assert own
    assert own.isdisjoint(two.ids())


def test_merge_names_the_csvs_that_stay_behind(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    filled(source, cell("CA+"))
    export(Store(source))

    def merged() -> Result:
        return CliRunner().invoke(main, ["merge", str(source), "--results", str(target)])

    assert "CSVs" not in merged().stderr  # results.csv is an export
    other = Store(tmp_path / "c")
    filled(other.root, cell("CA-"))
    shutil.copy(export(other)[0], source / "results.csv")  # of cells that are not here
    assert "left behind (results.csv)" in merged().stderr
    with pytest.warns(UserWarning, match="has rows of no cell in this folder"):
        export(Store(source))
    (rows,) = source.glob("results-*.csv")
    rows.unlink()
    shutil.copy(source / "results.csv", source / "fashion.csv")
    said = f"CSVs in {source} are left behind (fashion.csv): to take them, copy into {target}"
    assert said in merged().stderr
    shutil.rmtree(source / "cells")
    (source / ".exported").unlink()
    (source / "results.csv").write_bytes((source / "results.csv").read_bytes() + b"\n")
    done = merged()
    assert done.exit_code == 2
    assert f"{source} holds CSVs alone (fashion.csv, results.csv): copy them" in done.stderr
    fresh = str(tmp_path / "d")
    done = CliRunner().invoke(main, ["merge", str(other.root), str(source), "--results", fresh])
    assert done.exit_code == 2
    assert not list(Path(fresh).glob("*"))  # nothing was copied before the mistake was seen


def test_merge_looks_at_all_sources_before_it_copies(tmp_path: Path) -> None:
    one, two = Store(tmp_path / "a"), Store(tmp_path / "b")
    for store in (one, two):
        ran(store, trainings(defenses=("none",)))
    (folder,) = two.model_folders()
    with (folder / checkpoint.WEIGHTS).open("ab") as file:
        file.write(b"x")
    (tmp_path / "file").write_text("no folder")
    for wrong, reason in ((two.root, "is not what its manifest says"), ("file", "no results")):
        arguments = ["merge", str(one.root), str(tmp_path / wrong)]
        done = CliRunner().invoke(main, [*arguments, "--results", str(tmp_path / "c")])
        assert done.exit_code == 2
        assert reason in done.stderr
        assert not list((tmp_path / "c").glob("*"))
    before = sorted(two.root.rglob("*"))
    done = CliRunner().invoke(main, ["merge", str(one.root), "--results", str(two.root)])
    assert done.exit_code == 2
    assert "is not what its manifest says" in done.stderr  # a model of the target
    assert sorted(two.root.rglob("*")) == before
