"""Fifty kills at random, of drivers and of workers, change no byte of a sweep."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.faults import LONG, Sweeps, exports, kill, workers


@pytest.mark.slow
def test_fifty_kills_change_nothing(sweeps: Sweeps, tmp_path: Path) -> None:
    """SIGKILL at random to drivers and workers; each sweep that gets through is compared."""
    assert sweeps.run(tmp_path / "whole", *LONG).returncode == 0
    expected, chance = exports(tmp_path / "whole"), random.Random(0)
    kills, finished, number = {"driver": 0, "worker": 0}, 0, 0
    while sum(kills.values()) < 50:
        folder = tmp_path / f"sweep{number}"
        process = sweeps.start(folder, *LONG, "--workers", "2")
        while process.poll() is None and sum(kills.values()) < 50:
            time.sleep(chance.uniform(0.1, 5))
            alive = workers(process.pid)
            if process.poll() is None and alive:
                whom = "driver" if chance.random() < 0.4 else "worker"
                kill(process.pid if whom == "driver" else chance.choice(alive))
                kills[whom] += 1
        _, err = process.communicate(timeout=300)
        assert "Traceback" not in err
        if process.returncode == 0:
            assert exports(folder) == expected
            finished, number = finished + 1, number + 1
    last = sweeps.run(tmp_path / f"sweep{number}", *LONG)
    assert last.returncode == 0, last.stderr
    assert exports(tmp_path / f"sweep{number}") == expected
    assert min(kills.values()) >= 10
    print(f"{kills}, {finished} sweeps got through meanwhile")
