"""How long the tasks of a run will take, from what the same have taken before on such a device."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from dmlbench.compute import Compute
from dmlbench.identity import identity
from dmlbench.provenance import device_name, processor_name
from dmlbench.store import Cell, Store
from dmlbench.tasks import Task, Train

_KEEP = ("kind", "data", "model", "attack", "attack_values", "queries", "precision")


class Times:
    """Seconds of trainings and cells, by what decides them but for seed, weights and defense.

    Args:
        device: name of the processor; rows of others do not count.
        cells: past rows.
        store: where the manifests of trained models lie.
    """

    def __init__(self, device: str, cells: Iterable[Cell], store: Store) -> None:
        self.device = device
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)
        for row in cells:
            if row["status"] == "ok" and row["provenance"]["device"] == device:
                self._seconds[_key(row["facts"])].append(row["seconds"])
        for path in (store.root / "models").glob("*/manifest.json"):
            made = _manifest(path)
            if made is not None and made["provenance"]["device"] == device:
                self._seconds[_key(made["training"])].append(made["seconds"])

    def key(self, task: Task) -> str:
        """Tasks of one key take equally long."""
        return _key(task.job.training.facts if isinstance(task, Train) else task.cell["facts"])

    def seconds(self, key: str) -> float | None:
        """The median of the past rows of ``key``; None if there is none."""
        return median(self._seconds[key]) if key in self._seconds else None

    def add(self, key: str, seconds: float) -> None:
        """One more."""
        self._seconds[key].append(seconds)


def likely_device(compute: Compute) -> str:
    """The name of the device that will be used, without importing torch where there is no GPU."""
    nvidia = Path("/proc/driver/nvidia").exists()
    if compute.device == "cpu" or (compute.device == "auto" and not nvidia):
        return f"cpu: {processor_name()}"
    return device_name(compute.torch_device())


def _key(facts: dict[str, Any]) -> str:
    if facts["kind"] == "training":
        return identity({k: v for k, v in facts.items() if k != "seed"})
    return identity({k: facts.get(k) for k in _KEEP})


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        made: dict[str, Any] = json.loads(path.read_bytes())
        return made if {"training", "seconds", "provenance"} <= made.keys() else None
    except (OSError, ValueError, AttributeError):
        return None
