"""An attack that is stopped goes on after its last stored batch, and finds the same numbers."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmlbench.attacks.base import ATTACKS
from dmlbench.compute.embedding import EmbeddingModel
from dmlbench.core.protocol import Threat
from dmlbench.datasets.base import RetrievalData
from dmlbench.evaluation.evaluator import Evaluation
from dmlbench.evaluation.measurement import Measurement
from dmlbench.storage import interrupted as module
from dmlbench.storage.interrupted import Interrupted
from dmlbench.testing import tiny_network
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


class AlwaysDropout(torch.nn.Module):
    """Dropout in evaluation, too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(x, 0.2, training=True)


def equal(one: Measurement, other: Measurement) -> bool:
    """True if two measurements are the same to the last bit."""
    assert one.outcomes.keys() == other.outcomes.keys()
    for name, values in one.outcomes.items():
        np.testing.assert_array_equal(values, other.outcomes[name])
    return (one.metrics, one.findings) == (other.metrics, other.findings)


@pytest.mark.parametrize("name", NAMES)
def test_every_attack_finds_the_same_after_two_stops(
    tiny: RetrievalData, tmp_path: Path, stop_after: Callable[[int], None], name: str
) -> None:
    attack, path = EVERY[name].resolve(THREAT), tmp_path / "search.npz"
    with measured(tiny, batch_size=7) as found:
        whole = found.attack(attack, 0, name, 20, recalls=True)
    for before in (0, 7, 14):  # each by a process of its own, which has nothing in memory
        stop_after(1 if before < 14 else -1)
        last = Interrupted(path, "x")
        with measured(tiny, batch_size=7) as found:
            with nullcontext() if before == 14 else pytest.raises(KeyboardInterrupt):
                resumed = found.attack(attack, 0, name, 20, recalls=True, interrupted=last)
            said = found.reporter.said  # type: ignore[attr-defined]
        assert said == [f"{name}: {before} of 20 queries are stored"] * (before > 0)
    assert resumed.seconds_before == last.seconds_before > 0
    if name == "uap":  # each process makes the one perturbation, which takes passes
        assert resumed.findings.pop("passes") > whole.findings.pop("passes")
        assert resumed.findings.pop("passes_saved") == whole.findings.pop("passes_saved")
    assert equal(resumed, whole)


def test_a_randomised_network_draws_the_same(
    tiny: RetrievalData, tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    path, network = tmp_path / "search.npz", tiny_network()
    dropping = torch.nn.Sequential(network.backbone, AlwaysDropout())
    with measured(tiny, EmbeddingModel(dropping, "N"), batch_size=7, eot=3) as found:
        whole = found.attack(ES, 0, "es", 20)
        stop_after(2)
        with pytest.raises(KeyboardInterrupt):
            found.attack(ES, 0, "es", 20, interrupted=Interrupted(path, "x"))
        stop_after(-1)
        assert equal(found.attack(ES, 0, "es", 20, interrupted=Interrupted(path, "x")), whole)


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


def test_the_file_is_not_used_for_another_attack_batch_size_or_code(
    tiny: RetrievalData, tmp_path: Path
) -> None:
    path = tmp_path / "search.npz"
    with measured(tiny, batch_size=7) as found:
        found.attack(ES, 0, "es", 20, interrupted=Interrupted(path, "x"))
        assert Interrupted(path, "x").read(7)
        assert Interrupted(path, "x").read(8) is None
        assert Interrupted(path, "y").read(7) is None
        assert Interrupted(tmp_path / "none.npz", "x").read(7) is None


def test_a_damaged_file_is_not_used(tiny: RetrievalData, tmp_path: Path) -> None:
    path = tmp_path / "search.npz"
    with measured(tiny, batch_size=7) as found:
        found.attack(ES, 0, "es", 20, interrupted=Interrupted(path, "x"))
    content, sound = path.read_bytes(), Interrupted(path, "x").read(7)
    assert sound
    chance = np.random.default_rng(0)
    for place in chance.integers(0, len(content), 300).tolist():
        path.write_bytes(content[:place])
        assert Interrupted(path, "x").read(7) is None
        changed = bytearray(content)
        changed[place] ^= 1 << int(chance.integers(8))
        path.write_bytes(changed)
        read = Interrupted(path, "x").read(7)
        if read is not None:  # a part of the file that says nothing, such as a date
            assert read.keys() == sound.keys()
            for name, array in read.items():
                np.testing.assert_array_equal(array, sound[name])


def test_it_is_written_every_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    path = tmp_path / "search.npz"

    def saved(at: float, last: bool = False, of: str = "x") -> float | None:
        now[0] = at
        file.save(7, lambda: {"queries": np.array(at)}, last)
        again = Interrupted(path, of)
        arrays = again.read(7)
        return float(arrays["queries"]) if arrays else None

    file = Interrupted(path, "x", _begun=100, _saved=100)
    assert [saved(at) for at in (105, 111, 115, 120, 121.5)] == [None, 111, 111, 111, 121.5]
    assert saved(122, last=True) == 122
    file = Interrupted(path, "x", _begun=now[0], _saved=now[0])
    assert file.read(7)
    assert file.seconds_before == 22
    assert saved(133) == 133
    again = Interrupted(path, "x")
    assert again.read(7)
    assert again.seconds_before == 22 + 11
    path.unlink()
    file = Interrupted(path, "x", _begun=200, _saved=200)
    assert saved(209, last=True) is None  # a short attack leaves no file


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
