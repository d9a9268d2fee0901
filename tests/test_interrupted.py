"""An attack that is stopped goes on after its last stored batch, and finds the same numbers."""

from __future__ import annotations

import signal
import warnings
import zipfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmlbench.attacks.base import ATTACKS, Attack
from dmlbench.core.protocol import Threat
from dmlbench.datasets.base import RetrievalData
from dmlbench.evaluation.evaluator import Evaluation
from dmlbench.evaluation.measurement import Measurement
from dmlbench.storage import interrupted as module
from dmlbench.storage.interrupted import Interrupted
from tests.evaluations import measured
from tests.every_attack import EVERY, NAMES
from tests.faults import exports, until
from tests.fork_server import ForkServer

THREAT = Threat(eps=0.1, alpha=0.03, steps=3)
ES = ATTACKS.get("es")().resolve(THREAT)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the file after every batch, however little time has passed."""
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let Ctrl-C come after so many batches; -1: never."""
    real = Evaluation._attacked

    def stop(batches: int) -> None:
        def stopped(*args: Any) -> Iterator[Any]:
            yield from islice(real(*args), batches)
            raise KeyboardInterrupt

        monkeypatch.setattr(Evaluation, "_attacked", real if batches < 0 else stopped)

    return stop


def equal(one: Measurement, other: Measurement) -> bool:
    """True if two measurements are the same to the last bit."""
    assert one.outcomes.keys() == other.outcomes.keys()
    for name, values in one.outcomes.items():
        np.testing.assert_array_equal(values, other.outcomes[name])
    return (one.metrics, one.findings) == (other.metrics, other.findings)


@pytest.mark.parametrize("name", NAMES)
def test_every_attack_finds_the_same_after_a_stop(
    tiny: RetrievalData, tmp_path: Path, stop_after: Callable[[int], None], name: str
) -> None:
    attack, path = EVERY[name].resolve(THREAT), tmp_path / "search.npz"
    with measured(tiny, batch_size=3) as found:
        whole = found.attack(attack, 0, name, 6, recalls=True)
    stop_after(1)
    with measured(tiny, batch_size=3) as found, pytest.raises(KeyboardInterrupt):
        found.attack(attack, 0, name, 6, recalls=True, interrupted=Interrupted(path, "x"))
    stop_after(-1)
    file = Interrupted(path, "x")
    with measured(tiny, batch_size=3) as found:  # as another process, with nothing in memory
        resumed = found.attack(attack, 0, name, 6, recalls=True, interrupted=file)
        said = found.reporter.said  # type: ignore[attr-defined]
    assert said == [f"{name}: 3 of 6 queries are stored"]
    assert resumed.seconds_before == file.seconds_before > 0
    if name == "uap":  # each process makes the one perturbation, which takes passes
        assert resumed.findings.pop("passes") > whole.findings.pop("passes")
        assert resumed.findings.pop("passes_saved") == whole.findings.pop("passes_saved")
    assert equal(resumed, whole)


def test_an_attack_may_be_stopped_after_each_batch(
    tiny: RetrievalData, tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    path = tmp_path / "search.npz"
    with measured(tiny, batch_size=7) as found:
        whole = found.attack(ES, 0, "es", 20)
        for _ in range(2):
            stop_after(1)
            with pytest.raises(KeyboardInterrupt):
                found.attack(ES, 0, "es", 20, interrupted=Interrupted(path, "x"))
        stop_after(-1)
        assert equal(found.attack(ES, 0, "es", 20, interrupted=Interrupted(path, "x")), whole)
        said = found.reporter.said  # type: ignore[attr-defined]
    assert said == [f"es: {done} of 20 queries are stored" for done in (7, 14)]


def test_what_comes_after_the_last_batch_can_be_stopped_too(
    tiny: RetrievalData, tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    path = tmp_path / "search.npz"
    with measured(tiny, batch_size=7) as found:
        whole = found.attack(ES, 0, "es", 20)
        stop_after(3)
        with pytest.raises(KeyboardInterrupt):
            found.attack(ES, 0, "es", 20, interrupted=Interrupted(path, "x"))
        stop_after(0)  # no batch is left
        with pytest.raises(KeyboardInterrupt):
            found.attack(ES, 0, "es", 20, interrupted=Interrupted(path, "x"))
        stop_after(-1)
        assert equal(found.attack(ES, 0, "es", 20, interrupted=Interrupted(path, "x")), whole)


def filled(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """A file of 2,000 queries, in batches of 7; returns what is in it."""
    values = np.random.default_rng(0).normal(size=2000)
    arrays = {"parts ES:D": values, "queries": np.array(2000)}
    file = Interrupted(path, "x")
    assert file.read(7) == {}
    file.save(lambda: arrays, last=False)
    return arrays


def test_the_file_is_not_used_for_another_attack_batch_size_or_code(tmp_path: Path) -> None:
    path = tmp_path / "search.npz"
    arrays = filled(path)
    assert Interrupted(path, "x").read(7).keys() == arrays.keys()
    assert Interrupted(path, "x").read(8) == {}
    assert Interrupted(path, "y").read(7) == {}


def test_a_damaged_file_is_named_and_not_used(tmp_path: Path) -> None:
    path, chance = tmp_path / "search.npz", np.random.default_rng(0)
    arrays, content = filled(path), path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        headers = [one.header_offset for one in archive.infolist()]
    places = [first + further for first in headers for further in range(0, 200, 7)]
    for place in [*places, *chance.integers(0, len(content), 50).tolist()]:
        changed = bytearray(content)
        changed[place] ^= 1 << int(chance.integers(8))
        for damaged in (content[:place], changed):
            path.write_bytes(damaged)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                read = Interrupted(path, "x").read(7)
            if read:  # a part of the file that says nothing was changed, such as a date
                assert read.keys() == arrays.keys()
                for name, array in arrays.items():
                    np.testing.assert_array_equal(read[name], array)
            else:
                assert [f"{one.message}" for one in told] == [
                    f"{path} is damaged or cannot be read: the attack begins again"
                ]


def test_a_file_that_cannot_be_written_or_read_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file/search.npz", tmp_path):
        file = Interrupted(path, "x")
        with pytest.warns(UserWarning, match="begins again"):
            assert file.read(7) == {}
        with pytest.warns(UserWarning, match="an attack that is stopped will begin again"):
            file.save(dict, last=False)
        with warnings.catch_warnings(action="error"):
            file.save(dict, last=True)  # said once


def test_it_is_written_every_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    path = tmp_path / "search.npz"

    def saved(at: float, last: bool = False) -> float | None:
        now[0] = at
        file.save(lambda: {"queries": np.array(at)}, last)
        arrays = Interrupted(path, "x").read(7)
        return float(arrays["queries"]) if arrays else None

    def again(at: float) -> Interrupted:
        found = Interrupted(path, "x", _begun=at, _saved=at)
        found.read(7)
        return found

    file = again(100)
    assert [saved(at) for at in (105, 111, 115, 120, 121.5)] == [None, 111, 111, 111, 121.5]
    assert saved(122, last=True) == 122
    file = again(500)
    assert file.seconds_before == 22
    assert saved(511) == 511
    assert again(600).seconds_before == 22 + 11
    path.unlink()
    file = again(700)
    assert saved(709, last=True) is None  # a short attack leaves no file


def test_a_batch_that_was_too_large_is_not_kept(
    tiny: RetrievalData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real, calls = tmp_path / "search.npz", Attack.run, []

    def tight(self: Attack, model: Any, images: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(images))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, model, images, *args, **kwargs)

    monkeypatch.setattr(Attack, "run", tight)
    with measured(tiny, batch_size=8) as found:
        found.attack(ES, 0, "es", 20, interrupted=Interrupted(path, "x"))
    assert calls == [8, 8, 4, 4, 4]
    assert Interrupted(path, "x").read(8)["queries"] == 8
    assert Interrupted(path, "x").read(4) == {}


ATTACK = """
import time
from dataclasses import dataclass
from pathlib import Path
import torch
from dmlbench.attacks.base import Attack, Column, RowWise
from dmlbench.core.registry import Card
from dmlbench.storage import interrupted
interrupted.SAVE_SECONDS = 0

@dataclass(frozen=True)
class Towards(RowWise):
    target: torch.Tensor
    def value_and_grad(self, e, step):
        difference = e - self.target
        return difference.square().sum(1) / 2, difference
    def outcome(self, e):
        return {"SLOW": (e - self.target).norm(dim=1)}

@dataclass(frozen=True, kw_only=True)
class Slow(Attack):
    card = Card("slow", "waits to be killed in its third batch")
    columns = (Column("SLOW", "", "higher"),)
    def goal(self, gallery, index, seed):
        flag = Path("flag")
        if 20 in index.tolist() and not flag.exists():
            flag.write_text("waiting")
            time.sleep(600)
        return Towards(gallery.embeddings[index].roll(1, 0))
"""


def test_a_killed_process_goes_on_and_the_tables_are_the_same(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(ATTACK)
    command = ("run", "--dataset", "tiny", "--defense", "none", "--recipe", "epochs=1",
               "--attack", "slow.py:Slow", "--batch-size", "10", "--threads", "1")  # fmt: skip
    process = fork_server.start(command, tmp_path)
    until((tmp_path / "flag").exists)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60).returncode == -signal.SIGKILL
    (file,) = (tmp_path / "results/interrupted").glob("*.npz")
    content = file.read_bytes()
    again = fork_server.run(command, tmp_path, 300)
    assert again.returncode == 0, again.stderr
    assert "slow on N/A[R] (seed 0): 20 of 40 queries are stored" in again.stderr
    assert not file.exists()
    resumed = exports(tmp_path)
    file.write_bytes(content)
    never = fork_server.run((*command, "--resume", "never"), tmp_path, 300)
    assert never.returncode == 0, never.stderr
    assert "queries are stored" not in never.stderr
    assert not file.exists()
    assert exports(tmp_path) == resumed
