"""A Ray cluster of two workers gives the same results as one process."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dmlbench.common.errors import UserError
from dmlbench.compute.device import Compute
from dmlbench.sweep.executors.ray_cluster import RayCluster
from tests.faults import PATIENCE, SWEEP, Sweeps, exports, kill, until


@pytest.mark.slow
def test_ray_gives_what_one_process_gives_though_a_worker_is_killed(
    plugin: Path, faults: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'dmlbench[ray]'")
    home = tmp_path / "home"  # Ray writes a token there
    home.mkdir()
    sweeps = Sweeps(plugin, faults, FAULTS_FLAG=str(tmp_path / "flag"), HOME=str(home))
    sweep = (*SWEEP, "--attack", "waits", "--attack", "raises")
    (tmp_path / "flag").touch()
    assert sweeps.run(tmp_path / "one", *sweep).returncode == 1
    (tmp_path / "flag").unlink()
    process = sweeps.start(tmp_path / "ray", *sweep, "--executor", "ray", "--workers", "2")
    kill(int(until(lambda: (tmp_path / "flag").exists() and (tmp_path / "flag").read_text())))
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, err
    assert "8 of 10 cells done, 2 failed" in err
    assert exports(tmp_path / "ray") == exports(tmp_path / "one")
    shutil.rmtree(tmp_path / "ray" / "results" / "cells")
    hung = sweeps.run(tmp_path / "ray", *SWEEP, "--attack", "hangs", "--executor", "ray",
                      "--workers", "2", "--cell-timeout", "40")  # fmt: skip
    assert hung.returncode == 1, hung.stderr
    assert "stopped after 40 s (--cell-timeout)" in hung.stderr


def test_a_cluster_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(address: str = "", **_: object) -> None:
        raise ConnectionError if address else Exception("The node timed out\nduring startup.")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    session: Any = SimpleNamespace(compute=Compute("cpu"))
    with (
        pytest.raises(UserError, match=r"Ray cannot start: The node timed out during startup\. "),
        RayCluster(session, 2, None, None),
    ):
        pass
