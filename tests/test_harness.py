"""Runs that are killed, divided, short of disk space or misled by the clock lose no results.

Real processes and real faults. The tests of minutes are marked slow; a few short ones are not.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pandas as pd
import pytest
import yaml

from tests.faults import LONG, PATIENCE, SWEEP, Sweeps, exports, kill, until, workers


@pytest.mark.slow
def test_workers_give_what_one_process_gives_though_one_is_killed(
    sweeps: Sweeps, tmp_path: Path
) -> None:
    sweep = (*SWEEP, "--attack", "waits")
    (tmp_path / "flag").touch()  # nothing waits in the reference
    assert sweeps.run(tmp_path / "one", *sweep).returncode == 0
    (tmp_path / "flag").unlink()
    process = sweeps.start(tmp_path / "two", *sweep, "--workers", "2")
    kill(int(until(lambda: (tmp_path / "flag").exists() and (tmp_path / "flag").read_text())))
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "its worker died (SIGKILL); trying again" in err
    assert "8 of 8 cells done, 0 failed" in err
    assert exports(tmp_path / "two") == exports(tmp_path / "one")


def test_sigterm_ends_a_run_and_its_workers(sweeps: Sweeps, tmp_path: Path) -> None:
    process = sweeps.start(tmp_path / "a", *SWEEP, "--workers", "1", "--cell-timeout", "99")
    (worker,) = until(lambda: workers(process.pid))
    process.terminate()
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert "terminated; finished work is stored" in err
    assert "Traceback" not in err
    assert not Path(f"/proc/{worker}").exists()


def test_a_run_is_described_by_a_file(
    dmlbench: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("defense: [hm, est]\nattack: ca+\ndataset: tiny\nseed: [0, 1]\nshard: 1/2\n"
                    "recipe: {epochs: 2, lr: 1e-3}\n")  # fmt: skip
    done = dmlbench("run", "--config", str(file), "--seed", "5", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "2 models: 2 to do; 4 cells: 4 to do" in done.stdout  # of 3: the dearest, and another
    assert not (tmp_path / "results").exists()
    for line, word in (("defence: hm", "did you mean 'defense'?"), ("seed: [[0]]", "single value"),
                       ("- hm", "keys and values"), ("a: [", "not YAML")):  # fmt: skip
        file.write_text(line)
        done = dmlbench("run", "--config", str(file))
        assert done.returncode == 2
        assert word in done.stderr
        assert len([x for x in done.stderr.splitlines() if "plugin" not in x]) == 1
    file.write_text("defense: hm\nattack: ca+\nseed: 1.5")
    assert "'1.5' is not a valid integer" in dmlbench("run", "--config", str(file)).stderr


@pytest.mark.slow
def test_the_resolved_config_gives_the_same_cells(sweeps: Sweeps, tmp_path: Path) -> None:
    assert sweeps.run(tmp_path / "a", *SWEEP).returncode == 0
    (config,) = (tmp_path / "a" / "results" / "runs").glob("*.yaml")
    assert yaml.safe_load(config.read_text())["recipe"]["epochs"] == 2
    again = sweeps.run(tmp_path / "a", "run", "--config", str(config), "--dry-run", "--json")
    assert {r["status"] for r in json.loads(again.stdout)} == {"cached", "done"}


@pytest.mark.slow
def test_shards_make_the_whole(sweeps: Sweeps, tmp_path: Path) -> None:
    assert sweeps.run(tmp_path / "whole", *LONG).returncode == 0
    both = [sweeps.start(tmp_path / "b", *LONG, "--shard", f"{i}/2") for i in (1, 2)]
    for process in both:
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
    assert exports(tmp_path / "b") == exports(tmp_path / "whole")
    trained = len(list((tmp_path / "b" / "results" / "models").iterdir()))
    assert trained == 6
    done = sweeps.run(tmp_path / "b", "show", "--where", "suite=strict", "--pivot", "label:metric")
    assert "±" in done.stdout


@pytest.mark.slow
def test_two_sweeps_at_once_in_one_folder(sweeps: Sweeps, tmp_path: Path) -> None:
    assert sweeps.run(tmp_path / "whole", *LONG).returncode == 0
    both = [sweeps.start(tmp_path / "b", *LONG) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        assert "36 of 36 cells done" in err
    assert exports(tmp_path / "b") == exports(tmp_path / "whole")


@pytest.mark.slow
def test_attacks_that_raise_exit_hang_and_report_nan(sweeps: Sweeps, tmp_path: Path) -> None:
    names = [
        word for name in ("hangs", "raises", "not-a-number", "exits") for word in ("--attack", name)
    ]
    done = sweeps.run(tmp_path / "a", *SWEEP, *names, "--cell-timeout", "30")
    assert done.returncode == 1, done.stderr
    assert "6 of 14 cells done, 8 failed" in done.stderr
    table = pd.read_csv(tmp_path / "a" / "results" / "results.csv")
    failed = table[table["status"] == "failed"].set_index("attack")["error"]
    assert len(failed) == 8
    for name, error in (("hangs", "stopped after 30 s (--cell-timeout)"),
                        ("raises", "RuntimeError: no luck"), ("exits", "SystemExit: I quit"),
                        ("not-a-number", "every outcome is NaN")):  # fmt: skip
        assert failed[name].str.contains(error, regex=False).all()
    assert set(table[table["status"] == "ok"]["attack"].dropna()) == {"ca+", "es"}
    cells = [json.loads(p.read_text()) for p in (tmp_path / "a/results/cells").glob("*.json")]
    traces = [c["exception"]["traceback"] for c in cells if "no luck" in c.get("error", "")]
    assert all("dmlbench_faults.py" in trace for trace in traces)
    # only-missing leaves the failed rows alone; the other attacks need no second look
    done = sweeps.run(tmp_path / "a", *SWEEP, *names, "--resume", "only-missing")
    assert done.returncode == 1
    assert "there was nothing to do" in done.stderr


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB, really mounted."""
    folder = tmp_path / "small" / "results"
    folder.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder]).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--workers", "2"]], ids=["one", "workers"])
def test_a_full_disk_and_one_that_is_read_only(
    sweeps: Sweeps, tmp_path: Path, tmpfs: Path, flags: list[str]
) -> None:
    assert sweeps.run(tmp_path / "whole", *SWEEP).returncode == 0
    small = tmpfs.parent
    done = sweeps.run(small, *SWEEP, *flags)
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    subprocess.run(["mount", "-o", "remount,ro", tmpfs], check=True)
    done = sweeps.run(small, *SWEEP)
    assert done.returncode == 2
    assert "--results results cannot be written to: Read-only file system" in done.stderr
    dry = sweeps.run(small, *SWEEP, "--dry-run")
    assert dry.returncode == 2
    assert "--results results cannot be written to: no permission, or read-only" in dry.stderr
    subprocess.run(["mount", "-o", "remount,rw,size=64m", tmpfs], check=True)
    done = sweeps.run(small, *SWEEP, *flags)
    assert done.returncode == 0, done.stderr
    assert exports(small) == exports(tmp_path / "whole")


@pytest.mark.slow
def test_a_clock_that_jumps(plugin: Path, faults: Path, tmp_path: Path) -> None:
    assert Sweeps(plugin, faults).run(tmp_path / "whole", *SWEEP).returncode == 0
    jumps = tmp_path / "jumps"
    jumps.mkdir()
    (jumps / "sitecustomize.py").write_text(
        "import itertools, time\n"
        "real, jump = time.time, itertools.cycle([0, 1e8, -1e8, 3e7])\n"
        "time.time = lambda: real() + next(jump)\n"
    )
    jumping = Sweeps(jumps, plugin, faults)
    done = jumping.run(tmp_path / "a", *SWEEP, "--workers", "2", "--cell-timeout", "100")
    assert done.returncode == 0, done.stderr
    assert exports(tmp_path / "a") == exports(tmp_path / "whole")
    table = pd.read_csv(tmp_path / "a" / "results" / "results.csv")
    assert table["seconds"].between(0, 100).all()
    assert table["started"].str[:4].nunique() > 1  # it did jump


def test_without_ray_the_remedy_is_said(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from dmlbench.cli.main import main\n"
        "main(['run', '--defense', 'hm', '--attack', 'ca+', '--executor', 'ray'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "pip install 'dmlbench[ray]'" in done.stderr
