"""How long the tasks of a run will take, from what the same have taken before on such a device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from dmlbench.common.hashing import identity
from dmlbench.compute.device import Compute
from dmlbench.compute.provenance import device_name, processor_name
from dmlbench.storage.cell import Cell
from dmlbench.storage.store import Store
from dmlbench.sweep.tasks import Task, Train

_KEEP = ("kind", "data", "model", "attack", "attack_values", "queries", "precision")


@dataclass(frozen=True)
class Kind:
    """What tasks that take equally long have in common.

    Attributes:
        same: identity of what decides the time: not the seed, nor the weights that are attacked.
        like: the same, whatever the defense or the attack.
        passes: of a training step; 1 of a measured cell, 0 of one that is drawn from others.
    """

    same: str
    like: str
    passes: int


class Durations:
    """Seconds of trainings and cells.

    Args:
        device: name of the processor; rows of others do not count.
        cells: past rows.
        store: where the manifests of trained models lie.
    """

    def __init__(self, device: str, cells: Iterable[Cell], store: Store) -> None:
        self.device = device
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)
        self._per_pass: defaultdict[str, list[float]] = defaultdict(list)
        for row in cells:
            if row.ok and row.provenance.device == device:
                self.add(_cell(row.facts), row.seconds)
        for made in store.manifests():
            if made.provenance.device == device:
                self.add(_training(made.training, made.training_cost), made.seconds)

    def kind(self, task: Task) -> Kind:
        """What decides the time of ``task``."""
        if isinstance(task, Train):
            training = task.training
            return _training(training.facts, training.defense.training_cost)
        return _cell(task.cell.facts)

    def seconds(self, kind: Kind) -> float | None:
        """The median of the past rows of ``kind``, else what its passes took in like ones.

        None if there are none.
        """
        if kind.same in self._seconds:
            return median(self._seconds[kind.same])
        if kind.like in self._per_pass:
            return median(self._per_pass[kind.like]) * kind.passes
        return None if kind.passes else 0.0

    def add(self, kind: Kind, seconds: float) -> None:
        """One more."""
        self._seconds[kind.same].append(seconds)
        if kind.passes:
            self._per_pass[kind.like].append(seconds / kind.passes)


def likely_device(compute: Compute) -> str:
    """The name of the device that will be used, without importing torch where there is no GPU."""
    nvidia = Path("/proc/driver/nvidia").exists()
    if compute.device == "cpu" or (compute.device == "auto" and not nvidia):
        return f"cpu: {processor_name()}"
    return device_name(compute.torch_device())


def _training(facts: dict[str, Any], passes: int) -> Kind:
    same = {k: v for k, v in facts.items() if k != "seed"}
    like = {k: v for k, v in same.items() if not k.startswith("defense")}
    return Kind(identity(same), identity(like), passes)


def _cell(facts: dict[str, Any]) -> Kind:
    same = {k: facts.get(k) for k in _KEEP}
    like = {k: v for k, v in same.items() if not k.startswith("attack")}
    return Kind(identity(same), identity(like), int(facts["kind"] in ("benign", "attack")))
