"""The output of ``run --dry-run``: the tasks of a run and the time that they may take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from dmlbench.attacks.base import ATTACKS
from dmlbench.cli.console import aligned
from dmlbench.common.progress import duration
from dmlbench.core.naming import parameters, told_apart
from dmlbench.core.protocol import SUITE_ATTACKS, Threat
from dmlbench.sweep.durations import Durations
from dmlbench.sweep.policies import DONE
from dmlbench.sweep.status import PlannedModel
from dmlbench.sweep.tasks import CellTask, Measure, Train
from dmlbench.sweep.weights import UNTRAINED

CACHED = "cached"  # the status of a model that is trained already


def preview(models: Sequence[PlannedModel], resume: str, times: Durations) -> list[dict[str, Any]]:
    """Describe each training and each cell in a record of JSON types.

    Keys: ``defense``, ``label``, ``seed``, ``suite``, ``task`` (training, clean, an attack, worst
    case), ``status`` (cached, done, failed, stale, to do), ``runs`` (True if the run does it),
    ``seconds`` (expected: the median of similar tasks in the past; None if there were none),
    ``passes`` (forward-backward passes of an attack for each query, at most; else None),
    ``forward_passes`` (passes without a backward one, beside those),
    ``training`` and ``cell`` (identities; ``cell`` is None before the model is trained).
    """
    records = []
    for model in models:
        first_tasks = model.first_tasks(resume)
        trains = bool(first_tasks) and isinstance(first_tasks[0], Train)
        if model.train is not None:
            status = CACHED if model.trained == DONE else model.trained
            records.append(_record(model.train, status, trains, times))
        for task, status in model.cells:
            records.append(_record(task, status, model.measures(status, resume), times))
    return records


def lines(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The records as lines of aligned text."""
    table: list[Sequence[str]] = [("model", "seed", "suite", "task", "status", "time")]
    names = told_apart([r["label"] for r in records], [parameters(r["defense"]) for r in records])
    for r, name in zip(records, names, strict=True):
        time = "not known" if r["seconds"] is None else duration(r["seconds"])
        row = (name, str(r["seed"]), r["suite"], r["task"], r["status"])
        table.append((*row, time if r["runs"] else ""))
    return aligned(table)


def summary(records: Sequence[dict[str, Any]], workers: int, device: str) -> str:
    """One line: counts of models and cells by status, and the expected time of the rest."""
    counts = [
        f"{len(group)} {noun}: {_counts(group)}"
        for noun, trains in (("models", True), ("cells", False))
        if (group := [r for r in records if (r["task"] == "training") is trains])
    ]
    runs = [r for r in records if r["runs"]]
    known = [r["seconds"] for r in runs if r["seconds"] is not None]
    if not runs:
        return "; ".join([*counts, "nothing to do"])
    time = f"about {duration(sum(known) / workers)} on {device}" if any(known) else f"on {device}"
    if unknown := len(runs) - len(known):
        time += f" (no estimate for {unknown} of them: nothing similar has been timed here)"
    return "; ".join([*counts, f"{len(runs)} tasks to do, {time}"])


def price(records: Sequence[dict[str, Any]], threat: Threat) -> str:
    """The number of passes that the attacks of each suite take for a query, as text.

    For comparison it also says how many those of strict take. A pass is forward and backward; those
    that are forward alone are counted apart.
    """
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for record in records:
        if record["passes"] is not None:
            both = record["passes"], record["forward_passes"]
            found.setdefault(record["suite"], {})[record["task"]] = both
    texts = []
    for suite, passes in found.items():
        whole, forward = (sum(column) for column in zip(*passes.values(), strict=True))
        texts.append(f"{suite} {whole}" + f" and {forward} forward only" * bool(forward))
    plain = replace(threat, suite="strict")
    nine = (ATTACKS.get(name)().resolve(plain) for name in SUITE_ATTACKS["strict"])
    strict = sum(attack.most_passes for attack in nine)
    text = ", ".join(texts) or "none"
    return f"passes per query at most: {text} (the nine attacks of strict: {strict})"


def _counts(records: Sequence[dict[str, Any]]) -> str:
    found = Counter(record["status"] for record in records)
    return ", ".join(f"{count} {status}" for status, count in sorted(found.items()))


def _record(task: Train | CellTask, status: str, runs: bool, times: Durations) -> dict[str, Any]:
    about, facts = task.cell.about, task.cell.facts
    training = isinstance(task, Train)
    attack = task.attack if isinstance(task, Measure) else None
    identified = not training and facts.get("checkpoint") != UNTRAINED
    return {
        "defense": about.defense,
        "label": about.label,
        "seed": about.seed,
        "suite": about.suite,
        "task": "training" if training else about.attack or "clean",
        "status": status,
        "runs": runs,
        "seconds": times.seconds(times.kind(task)),
        "passes": attack.most_passes * facts.get("eot", 1) if attack is not None else None,
        "forward_passes": attack.most_forward_passes if attack is not None else None,
        "training": task.model,
        "cell": task.cell.id if identified else None,
    }
