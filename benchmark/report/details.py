"""More about a row of the page: its defense in words, its command, its date, paper and weights."""

from __future__ import annotations

import shlex
from functools import cache
from typing import Any

from dmlbench.analysis.records import Record
from dmlbench.attacks.base import ATTACKS
from dmlbench.common.errors import UserError
from dmlbench.core import spec
from dmlbench.core.naming import parameters, split_attack_seed
from dmlbench.core.protocol import SUITE_ATTACKS
from dmlbench.datasets.base import DATASETS
from dmlbench.defenses.base import DEFENSES
from dmlbench.report.entries import Entry
from dmlbench.zoo.registry import card_of


def details(entry: Entry) -> dict[str, Any]:
    """Heading -> text, or ``[text, address]`` for a link; what is not known is left out."""
    paper, record = entry.paper, next((r for found in entry.records.values() for r in found), {})
    weights = sorted({r["checkpoint_sha256"] for r in entry.records.get("R@1", ())} - {""})
    found: dict[str, Any] = {
        "Defense": defense_in_words(entry.defense),
        "Spec": entry.resolved or entry.defense,
        "Source": entry.place if paper else f"Measured {entry.source}",
        "Paper": [f"{paper.short}: {paper.title}", paper.url] if paper else "",
        "Date": entry.date,
        "Threat": entry.threat,
        "Command": command(entry),
        "Model card": [f"dmlbench zoo {one.name}" for one in map(card_of, weights) if one],
        "Weights (SHA-256)": " ".join(weights),
        "Made by": ", ".join(filter(None, [made_by(record), record["device"]])) if record else "",
        "Flags": entry.reasons(note=False),
        "Notes": entry.reasons(note=True),
        "Retrieval": entry.indicators,
        "Failed": [f"{what}: {lost['error']}" for what, lost in entry.failed.items()],
    }
    return {heading: text for heading, text in found.items() if text}


def made_by(record: Record) -> str:
    """The versions that a number was made by: ``dmlbench 0.1, 1a2b3c4d5e6f, torch 2.9``."""
    torch = record["torch"] and f"torch {record['torch']}"
    return ", ".join(filter(None, [f"dmlbench {record['dmlbench']}", record["git"][:12], torch]))


@cache
def defense_in_words(defense: str) -> str:
    """A defense's spec in words: its summary and paper, and each key that was set with its meaning.

    Empty if the defense is not known here, as one of a plugin that is not installed.
    """
    name, keys = defense.partition(":")[0], parameters(defense)
    if name not in DEFENSES.names():
        return ""
    cls = DEFENSES.get(name)
    help = {p.key: p.help for p in spec.parameters(cls)}
    summary = cls.card.summary[:1].upper() + cls.card.summary[1:]
    paper = f" ({cls.card.paper.short})" if cls.card.paper else ""
    said = [f"{key} = {value} ({help[key]})" for key, value in keys.items() if key in help]
    return f"{summary}{paper}.{' With ' if said else ''}{'; '.join(said)}{'.' * bool(said)}"


def command(entry: Entry) -> str:
    """The command line that trains and measures the row again; empty if it cannot be told.

    It cannot for published rows, for weights from elsewhere, and where attacks have another seed
    than the training.
    """
    if entry.paper or not entry.defense or not entry.suite:
        return ""
    words = ["dmlbench", "run", "--dataset", entry.dataset, "--defense", entry.defense]
    if entry.dataset.partition(":")[0] not in DATASETS.names() or entry.model != _usual(entry):
        words += ["--model", entry.model]
    words += ["--recipe", entry.recipe] * bool(entry.recipe)
    words += ["--suite", entry.suite]
    attacks = dict.fromkeys(r["attack"] for found in entry.records.values() for r in found)
    known = ATTACKS.names()
    run = [one for one in attacks if one.partition(":")[0] in known]
    if any(split_attack_seed(one)[1] is not None for one in run):  # 'run' has no such seed
        return ""
    if set(run) != set(SUITE_ATTACKS[entry.suite]):
        words += [word for one in run for word in ("--attack", one)]
    for flag, value in (("--queries", entry.queries), ("--eot", entry.eot)):
        words += [flag, value.partition(" ")[0]] * bool(value)
    words += ["--precision", entry.precision] * bool(entry.precision)
    words += [word for seed in entry.seeds for word in ("--seed", str(seed))]
    return shlex.join(words)


def _usual(entry: Entry) -> str:
    """The network of the data set's card; empty if the data set cannot be read here."""
    try:
        return spec.parse(entry.dataset, DATASETS).protocol.model
    except UserError:
        return ""
