"""A run whose processes are killed sixty times at random gives the usual bytes."""

from __future__ import annotations

import contextlib
import random
import time
from pathlib import Path

import pytest

from tests.faults import LONG, PATIENCE, Sweeps, exports, kill, workers

KILLS = 60


@pytest.mark.slow
def test_sixty_kills_change_nothing(sweeps: Sweeps, tmp_path: Path) -> None:
    """Kill main processes and workers, most of them while they work, some while they start.

    Each time a run finishes in spite of this, its results are compared and a new run is started.
    """
    assert sweeps.run(tmp_path / "whole", *LONG).returncode == 0
    expected, chance = exports(tmp_path / "whole"), random.Random(0)
    kills, finished = {"driver": 0, "worker": 0}, 0
    while sum(kills.values()) < KILLS:
        folder = tmp_path / f"sweep{finished}"
        process = sweeps.start(folder, *LONG, "--workers", "2")
        while process.poll() is None and sum(kills.values()) < KILLS:
            before = written(folder)
            patience = time.monotonic() + chance.choice([3, 60, 60])  # some die as they start
            while process.poll() is None and time.monotonic() < patience:
                if written(folder) > before:
                    break
                time.sleep(0.05)
            time.sleep(chance.uniform(0, 1))
            whom = "driver" if chance.random() < 0.4 else "worker"
            victims = [process.pid] if whom == "driver" else workers(process.pid)
            if process.poll() is None and victims:
                kill(chance.choice(victims))
                kills[whom] += 1
        _, err = process.communicate(timeout=PATIENCE)
        assert "Traceback" not in err
        if process.returncode == 0:
            assert exports(folder) == expected
            finished += 1
    last = sweeps.run(tmp_path / f"sweep{finished}", *LONG)
    assert last.returncode == 0, last.stderr
    assert exports(tmp_path / f"sweep{finished}") == expected
    assert min(kills.values()) >= KILLS // 5
    print(f"{kills}; {finished} sweeps got through meanwhile")


def written(folder: Path) -> int:
    """The time at which an epoch, a model or a cell was last stored."""
    results, times = folder / "results", []
    for pattern in ("models/*/state.pt", "models/*/manifest.json", "cells/*.json"):
        for path in results.glob(pattern):
            with contextlib.suppress(OSError):  # a state goes when its model is complete
                times.append(path.stat().st_mtime_ns)
    return max(times, default=0)
