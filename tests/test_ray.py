"""A Ray cluster of two workers gives the same results as one process."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from dmlbench.cli.main import main
from dmlbench.common.errors import UserError
from dmlbench.compute.device import Compute
from dmlbench.datasets.fashion import FashionMini
from dmlbench.storage.store import Store
from dmlbench.sweep.executors.ray_cluster import RayCluster
from dmlbench.sweep.run import RunOptions, run
from dmlbench.sweep.session import Session
from tests.faults import PATIENCE, SWEEP, Sweeps, exports, kill, until
from tests.plans import PLANNED, trainings
from tests.reporters import Silent


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


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray that cannot start."""

    def init(address: str = "", **_: object) -> None:
        raise ConnectionError if address else Exception("The node timed out\nduring startup.")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))


@pytest.mark.usefixtures("no_cluster")
def test_a_device_that_the_cluster_alone_has_is_not_looked_for_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--defense", "hm", "--attack", "ca+", "--device", "cuda:99")
    dry = CliRunner().invoke(main, ["run", *flags, "--executor", "ray", "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert "tasks to do, on cuda:99" in dry.output
    session = Session(FashionMini(), None, None, Store(tmp_path), Compute("cuda:99"), Silent())
    with pytest.raises(UserError, match="Ray cannot start"):
        run(session, trainings(defenses=("none",)), PLANNED, RunOptions(executor="ray"))
    with pytest.raises(UserError, match="--device cuda:99 cannot be used"):
        run(session, trainings(defenses=("none",)), PLANNED)


@pytest.mark.usefixtures("no_cluster")
def test_a_cluster_that_does_not_start_is_one_line() -> None:
    session: Any = SimpleNamespace(compute=Compute("cpu"))
    with (
        pytest.raises(UserError, match=r"Ray cannot start: The node timed out during startup\. "),
        RayCluster(session, 2, None, None),
    ):
        pass
