"""Fifty kills at random, of drivers and of workers, change no byte of a sweep."""

from __future__ import annotations

import contextlib
import random
import time
from pathlib import Path

import pytest

from tests.faults import LONG, Sweeps, exports, kill, workers

KILLS = 50


@pytest.mark.slow
def test_fifty_kills_change_nothing(sweeps: Sweeps, tmp_path: Path) -> None:
    """SIGKILL to drivers and workers, most of them at work, some as they start.

    Whenever a sweep gets through in spite of them it is compared, and another is begun.
    """
    assert sweeps.run(tmp_path / "whole", *LONG).returncode == 0
    expected, chance = exports(tmp_path / "whole"), random.Random(0)
    kills, finished = {"driver": 0, "worker": 0}, 0
    while sum(kills.values()) < KILLS:
        folder = tmp_path / f"sweep{finished}"
        process = sweeps.start(folder, *LONG, "--workers", "2")
        while process.poll() is None and sum(kills.values()) < KILLS:
            before, patience = written(folder), time.monotonic() + 60
            while chance.random() < 0.995 and process.poll() is None:
                if written(folder) > before or time.monotonic() > patience:
                    break
                time.sleep(0.05)
            time.sleep(chance.uniform(0, 1))
            whom = "driver" if chance.random() < 0.4 else "worker"
            victims = [process.pid] if whom == "driver" else workers(process.pid)
            if process.poll() is None and victims:
                kill(chance.choice(victims))
                kills[whom] += 1
        _, err = process.communicate(timeout=300)
        assert "Traceback" not in err
        if process.returncode == 0:
            assert exports(folder) == expected
            finished += 1
    last = sweeps.run(tmp_path / f"sweep{finished}", *LONG)
    assert last.returncode == 0, last.stderr
    assert exports(tmp_path / f"sweep{finished}") == expected
    assert min(kills.values()) >= KILLS // 5
    print(f"{kills}; {finished} sweeps got through meanwhile")


def written(folder: Path) -> float:
    """When something was last written to the results."""
    paths = (folder / "results").rglob("*")
    times = []
    for path in paths:
        with contextlib.suppress(OSError):  # temporary files come and go
            times.append(path.stat().st_mtime)
    return max(times, default=0.0)
