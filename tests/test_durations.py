"""Estimates of durations and of the time left: the measurements that they come from, and texts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dmlbench.attacks.base import ATTACKS
from dmlbench.cli.dry_run import lines, preview, summary
from dmlbench.common.progress import Tally, duration
from dmlbench.compute.device import Compute
from dmlbench.core.registry import Card
from dmlbench.datasets.fashion import FashionMini
from dmlbench.metrics.names import BENIGN
from dmlbench.storage.store import Store
from dmlbench.sweep import plan
from dmlbench.sweep.durations import Durations
from dmlbench.sweep.requests import parse_attacks
from dmlbench.sweep.scheduler import Scheduler
from dmlbench.sweep.session import Session
from dmlbench.sweep.status import StoredCells
from dmlbench.sweep.tasks import Measure, Train, new_cell
from tests.cells import cell, with_facts
from tests.plans import PLANNED, Fake, assessed, planned, ran, row, trainings
from tests.reporters import Silent


def test_a_preview_says_what_is_there_and_how_long_the_rest_takes(tmp_path: Path) -> None:
    store, found = Store(tmp_path), trainings(defenses=("none",))
    ran(store, found, bad=("es",))
    entries, known = assessed(store, [*found, *trainings(seeds=(1,), defenses=("none",))])
    times = Durations("cpu: x", known.cells.values(), store)
    records = preview(entries, "retry-failed", times)
    assert [r["status"] for r in records] == [
        "cached", "done", "done", "failed", "done", "done", "to do", *["to do"] * 7
    ]  # fmt: skip
    assert [r["seconds"] for r in records[:6]] == [None, 2, 2, 2, 2, 2]  # es as ca+
    assert records[1]["cell"] is not None
    assert records[8]["cell"] is None  # its weights are not known yet
    text = "\n".join([*lines(records), summary(records, 2, "cpu: x")])
    assert "2 models: 1 cached, 1 to do; 12 cells: 4 done, 1 failed, 7 to do" in text
    assert "9 tasks to do, about 6.0 s on cpu: x (no estimate for 1 of them" in text
    assert (
        Durations("cpu: y", known.cells.values(), store).seconds(times.kind(entries[0].cells[0][0]))
        is None
    )


def test_a_duration_is_estimated_from_the_passes_of_other_defenses(tmp_path: Path) -> None:
    none, est, other = (
        Train(training, new_cell(training.facts, cell().about, {}))
        for training in (*trainings(defenses=("none", "est:eta=8")), *trainings((1,), ("none",)))
    )
    times = Durations("cpu: x", [], Store(tmp_path))
    assert times.seconds(times.kind(est)) is None
    times.add(times.kind(none), 60.0)
    assert times.seconds(times.kind(est)) == 9 * 60
    times.add(times.kind(est), 300.0)
    assert times.seconds(times.kind(est)) == 300  # its own, once it is known
    assert times.kind(other) == times.kind(none)
    assert times.kind(none) != times.kind(est)


def test_a_training_that_was_resumed_took_as_long_as_its_manifest_says(tmp_path: Path) -> None:
    """And not only as long as the last run; whatever a cluster calls its devices."""
    store, found = Store(tmp_path), trainings(defenses=("none",))
    entries, known = assessed(store, found)
    session = Session(FashionMini(), None, None, store, Compute("cpu"), Silent())
    times = Durations("cuda", [], store)
    Scheduler(entries, PLANNED, session, Fake(store), known, times, "retry-failed").run()
    assert entries[0].train is not None
    assert times.seconds(times.kind(entries[0].train)) == 8


def test_the_duration_of_a_radius_is_estimated_by_all_its_passes(tmp_path: Path) -> None:
    weights = planned(Store(tmp_path), *trainings(defenses=("none",)), StoredCells([])).cells
    measure = weights[0][0]
    assert isinstance(measure, Measure)
    threat = FashionMini().protocol.threat
    attacks = plan.planned_attacks(parse_attacks(["es", "radius"], ["auto"]), threat)
    _, es, radius = plan.measures(measure.weights, attacks, BENIGN)
    assert es.attack is not None
    assert radius.attack is not None
    times = Durations("cpu: x", [], Store(tmp_path))
    times.add(times.kind(es), 1.0)
    ratio = radius.attack.most_passes / es.attack.most_passes
    assert ratio > 2
    assert times.seconds(times.kind(radius)) == pytest.approx(ratio)


@pytest.mark.usefixtures("registries")
def test_a_stored_cell_of_an_attack_that_has_changed_ends_no_run(tmp_path: Path) -> None:
    @ATTACKS.register
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Stricter(ATTACKS.get("ca+")):  # type: ignore[misc]
        card = Card("stricter", "refuses what it took when the cell was stored")

        def __post_init__(self) -> None:
            raise RuntimeError(f"steps={self.steps}")

    ca = planned(Store(tmp_path), *trainings(defenses=("none",)), StoredCells([])).cells[1][0]
    old = with_facts(row(ca), attack="stricter")
    Durations("cpu: x", [old], Store(tmp_path))


def test_the_time_left_is_not_guessed_from_other_work(tmp_path: Path) -> None:
    told: list[Tally] = []
    ran(Store(tmp_path), trainings(defenses=("none", "est:eta=8")), tell=told.append)
    assert {t.seconds for t in told if t.done <= 1} == {None}  # no attack was ever timed
    first = next(t.seconds for t in told if t.seconds is not None)
    still = 2 * len(PLANNED) + 1 - 1  # of both, and est's benign cell, but for the first
    # each takes the 2 s that its cell says, as an attack may go on that an earlier run began, and
    # not the 1 s of this run; est's training is estimated by its passes
    assert first == pytest.approx(9 * 8 + 2 * still, abs=0.1)
    assert (told[-1].done, told[-1].seconds) == (told[-1].total, 0.0)


def test_durations() -> None:
    assert [duration(s) for s in (0.04, 9.96, 59.4, 99.6, 3599, 7500, 200_000)] == [
        "0.0 s", "10 s", "59 s", "2 min", "1 h 00 min", "2 h 05 min", "2 d 7 h"
    ]  # fmt: skip
