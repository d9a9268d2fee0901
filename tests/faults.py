"""A plugin whose attacks fail, runs as real processes, and a comparison of results."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.fork_server import environment

PLUGIN = """
import os, sys, time
from dataclasses import dataclass
from pathlib import Path
import torch
from dmlbench.attacks.base import Attack, Column, RowWise
from dmlbench.core.registry import Card

@dataclass(frozen=True)
class Towards(RowWise):
    target: torch.Tensor
    value: float
    def value_and_grad(self, e, step):
        difference = e - self.target
        return difference.square().sum(1) / 2, difference
    def outcome(self, e):
        return {"F": torch.full((len(e),), self.value)}

class Faulty(Attack):
    columns = (Column("F", "%", "higher"),)
    value = 1.0
    def fault(self):
        pass
    def goal(self, gallery, index, seed):
        self.fault()
        return Towards(gallery.embeddings[index].roll(1, 0), self.value)

@dataclass(frozen=True, kw_only=True)
class Raises(Faulty):
    card = Card("raises", "raises")
    def fault(self):
        raise RuntimeError("no luck")

@dataclass(frozen=True, kw_only=True)
class Exits(Faulty):
    card = Card("exits", "ends the process, it thinks")
    def fault(self):
        sys.exit("I quit")

@dataclass(frozen=True, kw_only=True)
class Nan(Faulty):
    card = Card("not-a-number", "reports NaN")
    value = float("nan")

@dataclass(frozen=True, kw_only=True)
class Hangs(Faulty):
    card = Card("hangs", "hangs")
    def fault(self):
        while True:
            time.sleep(1)

@dataclass(frozen=True, kw_only=True)
class Waits(Faulty):
    card = Card("waits", "waits to be killed the first time")
    def fault(self):
        flag = Path(os.environ["FAULTS_FLAG"])
        if not flag.exists():
            flag.write_text(str(os.getpid()))
            time.sleep(120)
"""
NAMES = {
    "raises": "Raises",
    "exits": "Exits",
    "not-a-number": "Nan",
    "hangs": "Hangs",
    "waits": "Waits",
}
SWEEP = ("run", "--dataset", "tiny", "--defense", "hm", "--attack", "ca+", "--attack", "es",
         "--recipe", "epochs=2", "--threads", "1")  # fmt: skip
LONG = (*SWEEP, "--defense", "est", "--suite", "strict", "--attack", "ltm", "--attack", "gtm",
        "--seed", "0", "--seed", "1")  # fmt: skip

PATIENCE = 1800  # seconds after which a process hangs; others may want the machine
UNEQUAL = ("started", "seconds", "git", "device")  # times and hosts


def install(root: Path) -> Path:
    """Write the plugin into ``root`` as if it were installed there."""
    (root / "dmlbench_faults.py").write_text(PLUGIN)
    info = root / "dmlbench_faults-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dmlbench-faults\nVersion: 1.0\n")
    entries = "".join(f"{name} = dmlbench_faults:{cls}\n" for name, cls in NAMES.items())
    (info / "entry_points.txt").write_text(f"[dmlbench.attacks]\n{entries}")
    return root


class Sweeps:
    """Starts ``dmlbench`` with plugins, each process in a folder of its own."""

    def __init__(self, *plugins: Path, **variables: str) -> None:
        self.environment = environment(*plugins) | variables

    def start(self, folder: Path, *arguments: str) -> subprocess.Popen[str]:
        """Start a process, whose output is collected."""
        folder.mkdir(exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-m", "dmlbench", *arguments],
            cwd=folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Start a process and wait for its end."""
        process = self.start(folder, *arguments)
        out, err = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def exports(folder: Path) -> list[list[str]]:
    """Read the CSVs of a run, without times and names of machines."""
    found = []
    for name in ("results.csv", "wide.csv", "seeds.csv"):
        with (folder / "results" / name).open(newline="") as file:
            for row in csv.DictReader(file):
                found.append([v for k, v in row.items() if k not in UNEQUAL])
    return found


def kill(pid: int) -> None:
    """Kill the process by SIGKILL."""
    os.kill(pid, signal.SIGKILL)


def workers(driver: int) -> list[int]:
    """List the living worker processes of a main process."""
    try:
        children = Path(f"/proc/{driver}/task/{driver}/children").read_text().split()
        return [
            int(child)
            for child in children
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
    except OSError:
        return []


def until(condition: Any) -> Any:
    """Wait until ``condition()`` is true and return its value."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"it did not come about within {PATIENCE} s")
