"""A task that fails inside a worker is stored as failed, with advice."""

from __future__ import annotations

import dataclasses
import math
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from dmlbench.analysis.csv_files import export, read_tidy
from dmlbench.attacks.base import ATTACKS, Attack
from dmlbench.common.errors import UserError
from dmlbench.compute.device import Compute
from dmlbench.core import spec
from dmlbench.core.protocol import Recipe
from dmlbench.datasets.base import RetrievalData
from dmlbench.datasets.fashion import FashionMini
from dmlbench.defenses.base import DEFENSES
from dmlbench.evaluation.evaluator import Evaluation
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.metrics.names import BENIGN
from dmlbench.models.small import C2F2
from dmlbench.storage.interrupted import Interrupted
from dmlbench.storage.store import Store
from dmlbench.sweep import plan, status
from dmlbench.sweep import worker as module
from dmlbench.sweep.executors.pool import Pool, stops_deferred
from dmlbench.sweep.pictures import draw_attacks
from dmlbench.sweep.run import RunOptions
from dmlbench.sweep.session import Session, sound_manifest
from dmlbench.sweep.status import PlannedModel, StoredCells
from dmlbench.sweep.tasks import Measure
from dmlbench.sweep.weights import initial_weights
from dmlbench.sweep.worker import Worker
from tests.reporters import Silent

CARD = FashionMini().protocol
PLANNED = plan.planned_attacks([ATTACKS.get("ca+")(steps=2)], CARD.threat)


class Here(FashionMini):
    """The tiny data set, under the card of another."""

    known_digest = None
    data: RetrievalData

    def load(self, data_root: Path | None, cache: object = None) -> RetrievalData:
        return type(self).data


@pytest.fixture
def session(tiny: RetrievalData, tmp_path: Path) -> Session:
    Here.data = tiny
    folder = tmp_path / "results"
    folder.mkdir()
    store = Store(folder, folder.stat().st_ino)
    return Session(Here(), None, None, store, Compute("cpu"), Silent())


def entry(session: Session) -> PlannedModel:
    none = spec.parse("none", DEFENSES)
    recipe = Recipe(epochs=1, pairs=8)
    (job,) = plan.plan(session.dataset, session.digest, C2F2(dim=8), [none], [0], recipe)
    known = StoredCells(session.store.read()[0])
    manifest = sound_manifest(session, job)
    return status.plan_training(job, manifest, PLANNED, session.store, known, Compute(), BENIGN)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 0}, "workers must be at least 1"),
        ({"workers": -1}, "workers must be at least 1"),
        ({"workers": "2"}, "workers must be .* whole number"),
        ({"cell_timeout": 0}, "cell_timeout must be a number above 0"),
        ({"executor": "ray", "ray_gpus": -1}, "ray_gpus must be a number above 0"),
    ],
)
def test_options_of_a_run_are_checked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        RunOptions(**options)


@pytest.mark.filterwarnings("ignore:model c2f2.*weights are random")
def test_a_worker_gives_back_its_threads_after_an_error(session: Session) -> None:
    own = dataclasses.replace(session, compute=Compute("cpu", threads=3))
    weights = initial_weights(own.dataset, own.data, C2F2(dim=8), "own", 0, Compute())
    before, seen = torch.get_num_threads(), []

    def stopped() -> None:
        with Worker(own) as worker:
            worker.evaluation(weights)
            seen.append(torch.get_num_threads())
            raise UserError("stop")

    with pytest.raises(UserError, match="stop"):
        stopped()
    assert (seen, torch.get_num_threads()) == ([3], before)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nto"), ["out of memory", "pairs=4"]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9"), ["pairs=4", "--device"]),
        (MemoryError(), ["out of memory"]),
        (KeyError("x"), ["KeyError: 'x'"]),
        (SystemExit(3), ["SystemExit: 3"]),
        (ValueError("\x1b[2Jgone\rx\ud800" + "y" * 200_000), ["[2Jgone x yyy", "y..."]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_training_that_cannot_be_is_a_row_with_the_remedy(
    session: Session, monkeypatch: pytest.MonkeyPatch, error: BaseException, words: list[str]
) -> None:
    def broken(*_: Any) -> None:
        raise error

    monkeypatch.setattr(module, "train", broken)
    task = entry(session).train
    assert task is not None
    Worker(session).do(task)
    row = session.store.get(task.cell.id)
    assert row is not None
    for word in words:
        assert word in row.error
    assert row.error.isprintable()
    assert len(row.error) < 2100
    assert row.exception is not None
    assert "broken" in str(row.exception.traceback)
    assert entry(session).trained == "failed"
    monkeypatch.undo()
    worker = Worker(session)
    worker.do(task)  # again, and it works: the row is gone
    assert session.store.get(task.cell.id) is None
    assert entry(session).trained == "done"


def test_a_training_is_not_repeated_where_its_model_is_there(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a worker has died: what it has trained is left to the next attempt."""
    task = entry(session).first_tasks("never")[0]
    Worker(session).do(task)
    monkeypatch.setattr(module, "train", lambda *_: pytest.fail("trained again"))
    assert Worker(session).do(task) is None


def test_weights_replaced_while_a_run_lasts_are_not_measured(session: Session) -> None:
    worker, first = Worker(session), entry(session)
    assert first.train is not None
    worker.do(first.train)
    trained = entry(session)
    benign, attacked, *_ = [task for task, _ in trained.cells]
    worker.do(benign)
    worker.close()
    weights = session.store.model_folder(first.train.model) / "checkpoint.safetensors"
    weights.write_bytes(safetensors.torch.save(C2F2(dim=8).build(1, 8).state_dict()))
    with pytest.raises(UserError, match="replaced during the run"):
        worker.do(attacked)
    assert session.store.get(attacked.cell.id) is None
    assert session.store.get(benign.cell.id) is not None


def test_a_trained_model_is_built_alike_whatever_ran_before(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file may lack a random buffer; and the caller's generator is left as it was."""
    first, backbone, drawn = entry(session), C2F2.backbone, []
    assert first.train is not None
    Worker(session).do(first.train)
    (benign, _), *_ = entry(session).cells
    assert isinstance(benign, Measure)

    def drawing(*given: Any) -> torch.nn.Module:
        drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))
        return backbone(*given)

    monkeypatch.setattr(C2F2, "backbone", drawing)
    for seed in range(2):
        before = torch.manual_seed(seed).get_state()
        Worker(session).evaluation(benign.weights)
        assert torch.equal(torch.get_rng_state(), before)
    assert len(set(drawn)) == 1


@pytest.mark.parametrize("value", [250.0, math.nan, math.inf])
def test_an_outcome_out_of_bounds_fails_its_cell_and_no_later_run(
    session: Session, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    worker, first = Worker(session), entry(session)
    assert first.train is not None
    worker.do(first.train)
    benign, attacked, *_ = [task for task, _ in entry(session).cells]
    worker.do(benign)
    monkeypatch.setattr(
        "dmlbench.evaluation.evaluator.bootstrap_mean", lambda _: Estimate(value, None, None, 40)
    )
    failure = worker.do(attacked)
    row = session.store.get(attacked.cell.id)
    assert row is not None
    assert row == failure
    assert not row.ok
    assert row.error.startswith("the result cannot be right: ")
    assert ("CA+ is 250; it is within 0 and 100" in row.error) is (value == 250)
    tidy, _ = export(session.store)
    assert {r["status"] for r in read_tidy(tidy)} == {"ok", "failed"}
    monkeypatch.undo()
    assert worker.do(attacked) is None
    assert session.store.done(attacked.cell.id) is not None


def test_pictures_come_from_the_measurement_and_of_a_stored_cell_from_a_few_queries(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacked: list[int] = []
    real = Attack.run

    def counted(self: Attack, model: Any, images: torch.Tensor, *args: Any, **more: Any) -> Any:
        attacked.append(len(images))
        return real(self, model, images, *args, **more)

    monkeypatch.setattr(Attack, "run", counted)
    session = dataclasses.replace(session, keep=3)
    worker = Worker(session)
    train = entry(session).train
    assert train is not None
    worker.do(train)
    cells = [task for task, _ in entry(session).cells]
    for task in cells[:2]:
        worker.do(task)
    assert attacked == [40]
    drawn = {path: path.read_bytes() for path in draw_attacks(session, cells)}
    assert [path.name for path in drawn] == [f"query-0000{i}.png" for i in range(3)]
    assert attacked == [40]  # nothing was attacked again
    later = dataclasses.replace(session, kept={})
    assert {path: path.read_bytes() for path in draw_attacks(later, cells)} == drawn
    assert attacked == [40, 3]

    def broken(*_: Any, **__: Any) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(Attack, "run", broken)
    said: list[str] = []
    monkeypatch.setattr(session.reporter, "warn", said.append)
    assert draw_attacks(dataclasses.replace(session, kept={}), cells) == []
    assert said[0].startswith("no pictures of ca+:steps=2 on ")


@pytest.mark.parametrize(
    ("workers", "asked", "threads"), [(1, None, 16), (8, None, 8), (1, 40, 40)]
)
def test_a_worker_has_its_share_of_the_threads_but_no_more_than_one_process_takes(
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    asked: int | None,
    threads: int,
) -> None:
    monkeypatch.setattr("dmlbench.sweep.executors.pool.processors", lambda: 64)
    asking = dataclasses.replace(session, compute=Compute("cpu", threads=asked))
    assert Pool(asking, workers, None)._session[4].threads == threads


def test_a_stop_waits_until_a_worker_has_started() -> None:
    """Wherever it arrives; in another thread nothing changes, as stops are handled here."""
    arrived: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: arrived.append("stop"))
    try:
        with stops_deferred():
            signal.raise_signal(signal.SIGTERM)
            arrived.append("started")
        assert arrived == ["started", "stop"]
        thread = threading.Thread(target=lambda: stops_deferred().__enter__())
        thread.start()
        thread.join()
        signal.raise_signal(signal.SIGTERM)
        assert arrived[2:] == ["stop"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_does_not_reach_a_process_that_is_starting() -> None:
    """Nor later: its parent handles it. Beside the first one multiprocessing starts a tracker."""
    ask = (
        "import multiprocessing as m, signal, sys\n"
        "from dmlbench.sweep.executors.pool import stops_deferred\n"
        "if __name__ == '__main__':\n"
        "    code = 'import os, signal; os._exit(5 + (signal.SIGINT in "
        "signal.pthread_sigmask(signal.SIG_BLOCK, [])))'\n"
        "    started = [m.get_context('spawn').Process(target=exec, args=(code,)) for _ in '123']\n"
        "    with stops_deferred():\n"
        "        [one.start() for one in started[:2]]\n"
        "    started[2].start()\n"
        "    [one.join() for one in started]\n"
        "    print([one.exitcode for one in started])\n"
    )
    assert subprocess.check_output([sys.executable, "-c", ask], text=True) == "[6, 6, 5]\n"


def test_a_process_that_reads_other_images_than_the_plan_refuses_them(session: Session) -> None:
    assert dataclasses.replace(session, planned=session.digest).data.digest == session.digest
    other = dataclasses.replace(session, planned="0" * 64)
    with pytest.raises(UserError, match="the images of fashion-mini have changed since the run"):
        Worker(other).do(attacked_task(session, ATTACKS.get("ca+")(steps=2)))


def attacked_task(session: Session, attack: Attack) -> Measure:
    """The task of attacking a model, which is trained for it."""
    first = entry(session)
    if first.train is not None and first.trained != "done":
        Worker(session).do(first.train)
    benign, *_ = [task for task, _ in entry(session).cells]
    assert isinstance(benign, Measure)
    attacks = plan.planned_attacks([attack], CARD.threat)
    task = plan.measures(benign.weights, attacks, BENIGN)[1]
    assert isinstance(task, Measure)
    return task


def test_an_attack_goes_on_only_if_the_rest_would_be_the_same(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = attacked_task(session, ATTACKS.get("ca+")(steps=2))
    given: list[Interrupted | None] = []

    def attack(*_: Any, interrupted: Interrupted | None, **__: Any) -> None:
        given.append(interrupted)
        raise KeyboardInterrupt

    def file_of(task: Measure, **changed: Any) -> Interrupted | None:
        with pytest.raises(KeyboardInterrupt):
            Worker(dataclasses.replace(session, **changed)).do(task)
        return given[-1]

    monkeypatch.setattr(Evaluation, "attack", attack)
    file = file_of(own)
    assert file is not None
    assert file.path == session.store.interrupted(own.cell.id)
    assert file_of(own, compute=Compute("cpu", eot=2)) is None
    assert file_of(own, save_images=True) is None
    other = file_of(own, compute=Compute("cpu", threads=2))
    assert other is not None
    assert other.identity != file.identity
    monkeypatch.setattr(module, "source_sha256", lambda: None)
    assert file_of(own) is None
    session.store.root.rename(session.store.root.with_name("moved"))
    session.store.root.mkdir()
    with pytest.raises(UserError, match="moved or deleted"):
        dataclasses.replace(file, _saved=-1e9).save(dict, last=False)
    assert not list(session.store.root.iterdir())


@pytest.mark.parametrize("fails", [False, True])
def test_an_attack_that_has_ended_leaves_nothing_to_go_on_from(
    session: Session, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    task = attacked_task(session, ATTACKS.get("ca+")(steps=2))
    path = session.store.interrupted(task.cell.id)
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    if fails:
        monkeypatch.setattr(Attack, "run", lambda *_, **__: 1 / 0)
    with pytest.warns(UserWarning, match="damaged or cannot be read: the attack begins again"):
        assert (Worker(session).do(task) is not None) is fails
    assert not path.exists()


def test_what_was_left_of_an_attack_goes_once_its_cell_is_there(session: Session) -> None:
    task = attacked_task(session, ATTACKS.get("ca+")(steps=2))
    left, other = session.store.interrupted(task.cell.id), session.store.interrupted("0" * 16)
    Worker(session).do(task)
    left.parent.mkdir()
    for path in (left, other):
        path.touch()
    session.store.repair([])
    assert list(left.parent.iterdir()) == [other]
    other.unlink()
    other.mkdir()
    with pytest.raises(UserError, match="cannot delete"):
        session.store.forget_interrupted("0" * 16)
