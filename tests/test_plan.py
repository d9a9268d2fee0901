"""The plan of a run, the policies of --resume, and the scheduler."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dmlbench.analysis.records import wide
from dmlbench.attacks.base import ATTACKS, Column
from dmlbench.common.errors import CellError, UserError
from dmlbench.compute.device import Compute
from dmlbench.core import spec
from dmlbench.core.naming import split_attack_seed
from dmlbench.core.protocol import ERS_ATTACKS, recipe_changes
from dmlbench.datasets.base import DATASETS
from dmlbench.datasets.fashion import FashionMini
from dmlbench.evaluation.measurement import Measurement
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.metrics.ers import ERS_COLUMNS
from dmlbench.metrics.names import BENIGN
from dmlbench.storage.cell import ColumnInfo, ExceptionInfo
from dmlbench.storage.store import Store
from dmlbench.sweep import plan
from dmlbench.sweep.durations import Durations
from dmlbench.sweep.run import write_config
from dmlbench.sweep.scheduler import Scheduler
from dmlbench.sweep.session import Session, Stopwatch, store_failure, store_success
from dmlbench.sweep.tasks import Combine, Task, Train
from dmlbench.sweep.weights import trained_weights
from dmlbench.training.job import Training
from tests.cells import with_facts
from tests.plans import CARD, PLANNED, SUITE, Fake, assessed, planned, ran, row, trainings
from tests.reporters import Silent


def test_a_dry_run_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from dmlbench.cli.main import main\n"
        "try: main(['run', '--defense', 'hm', '--suite', 'strict', '--dry-run'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert list(tmp_path.iterdir()) == []


def test_known_digests_are_those_of_the_data() -> None:
    assert FashionMini().load(None).digest == FashionMini.known_digest
    fashion = DATASETS.get("fashion")()
    try:
        data = fashion.load(Path("/usr/share/datasets/fashion-mnist"))
    except UserError:
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    assert data.digest == fashion.known_digest


def test_a_run_without_a_seed_is_refused() -> None:
    with pytest.raises(UserError, match=r"name a seed \(--seed 0, in Python seeds=\[0\]\)"):
        trainings(seeds=())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.permutations(range(4)))
def test_shards_are_a_partition_that_flags_order_does_not_change(count: int, seeds: Any) -> None:
    whole = trainings(seeds)
    parts = [plan.shard(whole, number, count) for number in range(1, count + 1)]
    assert sorted(j.id for part in parts for j in part) == sorted(j.id for j in whole)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    costs = [sum(j.defense.training_cost for j in part) for part in parts]
    assert max(costs) - min(costs) <= max(j.defense.training_cost for j in whole)
    assert {j.id for j in parts[0]} == {j.id for j in plan.shard(trainings(range(4)), 1, count)}


def test_a_run_does_what_is_missing_and_then_nothing(tmp_path: Path) -> None:
    store, found = Store(tmp_path), trainings()
    scheduler, rows, did = ran(store, found)
    one = ["training", "benign", "ca+", "es", "ltm", "gtm", "worst case"]
    assert did == one * 3  # model by model: one stays in memory
    assert len(rows) == scheduler.done == scheduler.total == 18
    assert scheduler.left.total() == 0
    again, same, did = ran(store, found)
    assert did == []
    assert same == rows
    assert "nothing to do" in again.summary
    (tmp_path / "cells" / f"{rows[1].id}.parquet").unlink()  # its outcomes are gone
    assert ran(store, found)[2] == ["ca+"]  # of no score
    store.remove(rows[5].id)
    assert ran(store, found)[2] == ["worst case"]
    store.remove(rows[2].id)  # an attack is measured again, and so is the score that it is in
    assert ran(store, found)[2] == ["es", "worst case"]


def test_combined_scores_are_planned_if_all_their_attacks_are() -> None:
    def scores(*specs: str, distance: str = "N") -> dict[str, list[str]]:
        attacks = plan.planned_attacks([spec.parse(one, ATTACKS) for one in specs], CARD.threat)
        one = trained_weights(trainings()[0], None, Store(Path("nowhere")), Compute())
        one = dataclasses.replace(one, about=replace(one.about, distance=distance))
        tasks = plan.measures(one, attacks, BENIGN)
        return {
            t.cell.about.attack: [column for _, column in t.sources]
            for t in plan.combines(one, tasks)
        }

    worst = ["R@1", "ES:R", "LTM", "GTM"]
    assert scores("es", "ltm") == {}
    assert scores("es", "ltm", "gtm") == {"worst case": worst}
    assert scores(
        *("es:restarts=30", "gtm", "es:restarts=3", "es", "ltm"),
        *("ltm:restarts=3", "ltm:restarts=3,steps=4"),
    ) == {
        "worst case": worst,
        "worst case:es:restarts=30 ltm:restarts=3": [*worst, "ES:R", "LTM"],
    }
    assert scores("es:restarts=3", "ltm", "gtm") == {}
    whole = scores(*ERS_ATTACKS)
    assert sorted(whole["ERS"]) == sorted(ERS_COLUMNS)
    assert "ERS" not in scores(*ERS_ATTACKS, distance="C")
    small = [f"{name}:eps=8/255,alpha=1/255" for name in ERS_ATTACKS]
    smaller = [f"{name}:eps=4/255" for name in ("es", "ltm", "gtm")]
    assert scores(*small, *smaller) == {
        "worst case:eps=8/255,alpha=1/255": worst,
        "ERS:eps=8/255,alpha=1/255": whole["ERS"],
        "worst case:eps=4/255": worst,
    }
    assert scores(*(f"{name}:steps=4" for name in ERS_ATTACKS)) == {}  # no other threat
    assert scores("es:eps=4/255,restarts=2", "ltm:eps=4/255", "gtm:eps=4/255") == {}
    twice = [
        "es:eps=4/255,restarts=2",
        *(f"{name}:restarts=2,eps=4/255" for name in ("ltm", "gtm")),
    ]
    assert scores(*smaller, *twice) == {
        "worst case:eps=4/255": worst,
        "worst case:eps=4/255,restarts=2": worst,
    }


def test_policies(tmp_path: Path) -> None:
    store, found = Store(tmp_path), trainings(defenses=("none", "hm"))
    scheduler, rows, _ = ran(store, found, bad=("es",))
    assert (scheduler.done, scheduler.failed) == (8, 4)  # es, and the worst case that needs it
    assert ran(store, found, "only-missing", bad=("es",))[2] == []
    assert ran(store, found, bad=("es",))[2] == ["es"] * 2
    assert ran(store, found)[2] == ["es", "worst case"] * 2
    assert ran(store, found, "always")[2] == []
    entries, _ = assessed(store, found)
    older = entries[0].cells[1][0].cell  # ca+ of the first model, by an older definition
    store.remove(older.id)
    old = with_facts(row(entries[0].cells[1][0]), attack_version=0)
    store.put(old, {"x": np.zeros(4)})
    statuses = [s for _, s in assessed(store, found)[0][0].cells]
    assert statuses == ["done", "stale", "done", "done", "done", "done"]
    _, rows, did = ran(store, found, "always")
    assert did == []
    assert old.id in [r.id for r in rows]
    assert ran(store, found)[2] == ["ca+"]


def older(store: Store, found: list[Training], version: int) -> None:
    """Store the cells of the first model as an older version of its attacks measured them."""
    ids: dict[str, str] = {}
    for task, _ in assessed(store, found)[0][0].cells:
        one = replace(row(task), started=float(version))
        if isinstance(task, Combine):
            one = with_facts(one, cells=[ids[source] for source, _ in task.sources])
        elif task.attack is not None:
            one = with_facts(one, attack_version=version)
        ids[task.cell.id] = one.id
        store.put(one, {"x": np.zeros(4)})


def test_of_older_versions_the_newest_is_taken_and_the_score_of_its_attacks(tmp_path: Path) -> None:
    store, found = Store(tmp_path), trainings(defenses=("none",))
    ran(store, found)
    for task, _ in assessed(store, found)[0][0].cells[1:]:
        store.remove(task.cell.id)
    for version in (95, 90, 98, 97, 96):
        older(store, found, version)
    scheduler, rows, did = ran(store, found, "always")
    assert did == []
    assert (scheduler.done, scheduler.failed) == (6, 0)
    assert [one.started for one in rows[1:]] == [98.0] * 5
    assert "cells" in rows[-1].facts
    _, rows, did = ran(store, found, lost=("es",))  # another policy takes no older score
    assert did == ["ca+", "es", "ltm", "gtm"]
    assert [one.about.attack for one in rows] == ["", *did]
    for one in store.cells():
        if one.about.attack == "es":
            store.remove(one.id)
    assert ran(store, found, "always")[2] == ["es", "worst case"]  # nor does a new measurement


@pytest.mark.parametrize(
    ("fact", "expected"),
    [
        *(("checkpoint", "stale"), ("attack_source", "stale")),
        *(("measure_version", "stale"), ("attack_version", "stale")),
        *(("seed", "to do"), ("queries", "to do")),
    ],
)
def test_only_another_version_of_a_measurement_is_stale(
    tmp_path: Path, fact: str, expected: str
) -> None:
    store, found = Store(tmp_path), trainings(defenses=("none",))
    ran(store, found)
    task, _ = assessed(store, found)[0][0].cells[1]
    store.remove(task.cell.id)
    store.put(
        with_facts(row(task), **{fact: 99 if "version" in fact else "another"}), {"x": np.zeros(4)}
    )
    assert assessed(store, found)[0][0].cells[1][1] == expected


def test_the_policy_never_deletes_each_model_once_and_trains_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, found = Store(tmp_path), trainings(defenses=("none",))
    ran(store, found)
    seen: list[bool] = []

    def start(self: Fake, task: Task) -> None:
        if isinstance(task, Train):
            seen.append(store.model_folder(task.model).exists())
        plain(self, task)

    plain = Fake.start
    monkeypatch.setattr(Fake, "start", start)
    assert ran(store, found, "never")[2][0] == "training"
    assert seen == [False]


def test_a_failed_training_fails_its_cells_and_is_tried_again(tmp_path: Path) -> None:
    store, found = Store(tmp_path), trainings(defenses=("none",))
    scheduler, rows, _ = ran(store, found, bad=("training",))
    assert (scheduler.failed, scheduler.left.total()) == (6, 0)
    assert [r.facts["kind"] for r in rows] == ["training"]
    scheduler, rows, did = ran(store, found, "only-missing")
    assert (did, scheduler.failed, len(rows)) == ([], 6, 1)
    store.remove(rows[0].id)
    assert len(ran(store, found)[1]) == 6


def test_attacks_of_another_seed_than_the_training_have_columns_of_their_own(
    tmp_path: Path,
) -> None:
    (training,) = trainings(seeds=(3,), defenses=("none",))
    weights = trained_weights(training, None, Store(Path()), Compute())
    tasks = plan.cells(weights, PLANNED, BENIGN)
    others = plan.cells(dataclasses.replace(weights, seed=5), PLANNED, BENIGN)
    found = [*map(row, tasks), *map(row, others)]
    assert len({one.id for one in found}) == 2 * len(tasks) - 1  # clean images are the same
    (wide_row,) = wide(found)
    assert {"CA+", "CA+ (attack_seed=5)"} <= wide_row.estimates.keys()
    for task, other in zip(tasks, others, strict=True):
        attack = task.cell.about.attack
        again = other.cell.about.attack
        assert split_attack_seed(again) == ((attack, 5) if attack else ("", None))
    # a cell that an older version stored, without the key, gets it where it is read
    store = Store(tmp_path)
    for task, other in zip(tasks, others, strict=True):
        plain = row(other)
        about = replace(plain.about, attack=task.cell.about.attack)
        store.put(replace(plain, about=about), dict.fromkeys(plain.metrics, np.ones(2)))
    stored = {one.id: one.about.attack for one in store.cells()}
    assert stored == {row(other).id: other.cell.about.attack for other in others}
    # a name alone: the identities are those of before
    assert [one.cell.facts for one in others[1:2]] == [tasks[1].cell.facts | {"seed": 5}]


@pytest.mark.parametrize("resume", ["retry-failed", "only-missing"])
def test_a_training_that_failed_once_is_no_row_once_its_model_is_there(
    tmp_path: Path, resume: str
) -> None:
    store, found = Store(tmp_path), trainings(defenses=("none",))
    ran(store, found, bad=("training",))
    assert [one.ok for one in store.cells()] == [False]
    entries, _ = assessed(store, found)
    executor = Fake(store)  # as 'dmlbench train' does
    assert entries[0].train is not None
    executor.start(entries[0].train)
    executor.wait()
    assert store.cells() == []
    scheduler, rows, _ = ran(store, found, resume)
    assert (scheduler.done, scheduler.failed) == (6, 0)
    assert all(one.ok for one in rows)


def test_a_task_whose_worker_is_gone_is_a_failed_row(tmp_path: Path) -> None:
    _, rows, _ = ran(Store(tmp_path), trainings(defenses=("none",)), lost=("ca+",))
    (failed,) = [r for r in rows if not r.ok]
    assert failed.error == "its worker died"
    assert failed.seconds == pytest.approx(3, abs=0.5)
    assert failed.exception == ExceptionInfo(CellError.__name__, None)


def test_a_failure_does_not_replace_a_number(tmp_path: Path) -> None:
    store, found = Store(tmp_path), trainings(defenses=("none",))
    scheduler, rows, _ = ran(store, found)
    # as a slower run would
    store_failure(scheduler.session, rows[1], "ca+", CellError("late"), Stopwatch())
    assert store.cells() == sorted(rows, key=lambda one: one.order)


def test_columns_that_another_run_has_stored_meanwhile_stay(tmp_path: Path) -> None:
    store, found = Store(tmp_path), trainings(defenses=("none",))
    scheduler, rows, _ = ran(store, found)
    more = {name: ColumnInfo("%", "higher") for name in (*rows[1].columns, "CA+:R@4")}
    wider = replace(rows[1], columns=more, metrics=dict.fromkeys(more, Estimate(1.0, 0.0, 2.0, 4)))
    for stored in (wider, rows[1]):  # the run that wants fewer is the last to store
        values = Measurement(stored.metrics, {}, dict.fromkeys(stored.columns, np.ones(4)))
        store_success(scheduler.session, stored, values, Stopwatch())
        kept = store.get(wider.id)
        assert kept is not None
        assert kept.metrics == wider.metrics
        assert set(store.outcomes(wider.id)) == set(more)


def test_a_number_that_cannot_be_measured_again_is_a_failure_and_stays(tmp_path: Path) -> None:
    store, found = Store(tmp_path), trainings(defenses=("none",))
    ran(store, found)
    before = store.cells()
    scheduler, rows, _ = ran(store, found, "never", bad=("ca+",))
    assert scheduler.failed == 1
    assert scheduler.done == scheduler.total - 1
    assert [one.error for one in rows if not one.ok] == ["boom"]
    assert store.cells() == before


def test_what_another_run_has_done_is_not_done_again(tmp_path: Path) -> None:
    store, found = Store(tmp_path), trainings(defenses=("none",))
    _, known = assessed(store, found)  # planned before the other run
    ran(store, found)
    executor = Fake(store)
    session = Session(FashionMini(), None, None, store, Compute("cpu"), Silent())
    trained = planned(store, found[0], known)
    scheduler = Scheduler(
        [trained], PLANNED, session, executor, known, Durations("", [], store), "retry-failed"
    )
    session.reporter.tally = lambda tally: None  # type: ignore[method-assign]
    assert len(scheduler.run()) == 6
    assert executor.did == ["worst case"]  # a score takes no time, and cells may be newer


def test_a_score_is_drawn_again_if_one_of_its_attacks_was_measured_since(tmp_path: Path) -> None:
    store, found = Store(tmp_path), trainings(defenses=("none",))
    ran(store, found)
    (es,) = (one for one in store.cells() if one.about.attack == "es")
    store.put(replace(es, started=es.started + 60), {"x": np.zeros(4)})
    (entry,), _ = assessed(store, found)
    assert {task.cell.about.attack: known for task, known in entry.cells} == {
        "": "done",
        **{one.card.name: "done" for one in SUITE},
        "worst case": "to do",
    }


def test_texts_of_a_recipe_are_exact() -> None:
    usual = CARD.recipe
    texts = {1e-4: "0.0001", 1e-5: "1e-05", 1.0: "1", 0.00123456789: "0.00123456789"}
    for value, text in texts.items():
        assert recipe_changes({"epochs": usual.epochs, "lr": value}, usual) == f"lr={text}"


def test_a_resolved_config_is_named_by_its_content(tmp_path: Path) -> None:
    first = write_config(tmp_path, {"defense": ["hm"], "seed": [0], "recipe": {"epochs": 2}})
    assert (
        write_config(tmp_path, {"seed": [0], "recipe": {"epochs": 2}, "defense": ["hm"]}) == first
    )
    assert write_config(tmp_path, {"defense": ["hm"], "seed": [1]}) != first
    assert yaml.safe_load(first.read_text())["recipe"] == {"epochs": 2}


def test_a_column_that_no_board_can_rank_is_refused_before_any_work() -> None:
    class Odd(ATTACKS.get("ca+")):  # type: ignore[misc]
        columns = (Column("CA+", "%", "sideways"),)  # type: ignore[arg-type]

    with pytest.raises(UserError, match=r"attack ca\+: its column CA\+ is wrong.*sideways"):
        plan.planned_attacks([Odd()], CARD.threat)
