"""Estimates of the duration of tasks, from the durations of earlier ones on the same device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from dmlbench.attacks.base import ATTACKS
from dmlbench.common.errors import UserError
from dmlbench.common.hashing import identity
from dmlbench.compute.device import Compute
from dmlbench.compute.provenance import device_name, processor_name
from dmlbench.core import spec
from dmlbench.storage.cell import Cell
from dmlbench.storage.store import Store
from dmlbench.sweep.tasks import Task, Train

_MEASURED = ("benign", "attack")
_CELL_FACTS = ("kind", "data", "model", "attack", "attack_values", "queries", "precision", "eot")


@dataclass(frozen=True)
class TaskKind:
    """A class of tasks that take equally long.

    Attributes:
        exact: hash of the facts that decide the duration. The seed and the attacked weights are not
            among them.
        family: the same hash without the defense or the attack.
        passes: number of forward-backward passes in a training step, or of an attack for each
            query; 1 for a benign cell, and 0 for one that is computed from other cells.
    """

    exact: str
    family: str
    passes: int


class Durations:
    """The durations of past trainings and measurements, and estimates from them.

    Args:
        device: name of the device; durations on other devices are ignored.
        cells: the stored cells.
        store: its folder holds the manifests of trained models.
    """

    def __init__(self, device: str, cells: Iterable[Cell], store: Store) -> None:
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)
        self._per_pass: defaultdict[str, list[float]] = defaultdict(list)
        for cell in cells:
            if cell.ok and cell.provenance.device == device:
                self.add(_cell_kind(cell.facts), cell.seconds)
        for manifest in store.manifests():
            if manifest.provenance.device == device:
                kind = _training_kind(manifest.training, manifest.training_cost)
                self.add(kind, manifest.seconds)

    def kind(self, task: Task) -> TaskKind:
        """Return the class of ``task``."""
        if isinstance(task, Train):
            training = task.training
            return _training_kind(training.facts, training.defense.training_cost)
        return _cell_kind(task.cell.facts)

    def seconds(self, kind: TaskKind) -> float | None:
        """Estimate the duration of a task, in seconds.

        It is the median of earlier tasks of this kind. If there are none, it is the median time of
        a pass in tasks that differ in the defense or the attack alone, times the passes.

        Returns:
            None if there are no such tasks either.
        """
        if kind.exact in self._seconds:
            return median(self._seconds[kind.exact])
        if kind.family in self._per_pass:
            return median(self._per_pass[kind.family]) * kind.passes
        return None if kind.passes else 0.0

    def add(self, kind: TaskKind, seconds: float) -> None:
        """Take the duration of one more finished task into account."""
        self._seconds[kind.exact].append(seconds)
        if kind.passes:
            self._per_pass[kind.family].append(seconds / kind.passes)


def expected_device(compute: Compute, here: bool) -> str:
    """Return the name of the device of a run. torch is imported only if there may be a GPU.

    If a cluster computes (``here`` is False), this machine may lack the device: then the name is
    that of ``--device``.
    """
    nvidia = Path("/proc/driver/nvidia").exists()
    if compute.device == "cpu" or (compute.device == "auto" and not nvidia):
        return f"cpu: {processor_name()}"
    try:
        return device_name(compute.torch_device())
    except UserError:
        if here:
            raise
        return compute.device


def _training_kind(facts: dict[str, Any], passes: int) -> TaskKind:
    exact = {k: v for k, v in facts.items() if k != "seed"}
    family = {k: v for k, v in exact.items() if not k.startswith("defense")}
    return TaskKind(identity(exact), identity(family), passes)


def _cell_kind(facts: dict[str, Any]) -> TaskKind:
    exact = {k: facts.get(k) for k in _CELL_FACTS}
    family = {k: v for k, v in exact.items() if not k.startswith("attack")}
    passes = _passes(facts) * facts.get("eot", 1) if facts["kind"] in _MEASURED else 0
    return TaskKind(identity(exact), identity(family), passes)


def _passes(facts: dict[str, Any]) -> int:
    """The passes of an attack for each query, by the facts of its cell; 1 for a benign cell."""
    values = facts.get("attack_values")
    if values is None:
        return 1  # benign cells are like each other
    # a pass of a black box is forward alone, and counted as a whole one: it takes less
    least: int = (values["steps"] or values["budget"]) * max(1, values.get("restarts", 0))
    if facts["attack"] not in ATTACKS.names():
        return least
    cls = ATTACKS.get(facts["attack"])
    given = {p.name: values[p.key] for p in spec.parameters(cls) if p.key in values}
    try:
        return max(least, cls(**given).most_passes)
    except Exception:  # the attack has changed since: its class may raise anything at old values
        return least
