"""Everything that is registered, described for ``dmlbench list``. Imports no torch."""

from __future__ import annotations

from typing import Any

from dmlbench.attacks.base import ATTACKS, Attack
from dmlbench.core import spec
from dmlbench.core.registry import Component, Registry
from dmlbench.datasets.base import DATASETS, DatasetCard
from dmlbench.defenses.base import DEFENSES
from dmlbench.models.base import MODELS


def registries() -> dict[str, Registry[Any]]:
    """Plural name -> registry, in the order people read them."""
    return {"attacks": ATTACKS, "defenses": DEFENSES, "datasets": DATASETS, "models": MODELS}


def column_help() -> dict[str, str]:
    """Heading -> what the number means, of every registered attack's columns."""
    return {column.name: column.help for attack in ATTACKS for column in attack.columns}


def describe(cls: type[Component]) -> dict[str, Any]:
    """Name, meaning, paper, parameters, and what the kind adds, as JSON types."""
    card = cls.card
    paper = card.paper
    entry: dict[str, Any] = {
        "name": card.name,
        "summary": card.summary,
        "version": card.version,
        "paper": None
        if paper is None
        else {"short": paper.short, "title": paper.title, "url": paper.url, "bibtex": paper.bibtex},
        "parameters": [
            {
                "name": p.name,
                "default": p.show(p.default),
                "domain": p.domain,
                "help": p.help,
            }
            for p in spec.parameters(cls)
        ],
    }
    if issubclass(cls, Attack):
        entry["columns"] = [
            {"name": c.name, "unit": c.unit, "better": c.better} for c in cls.columns
        ]
    if isinstance(card, DatasetCard):
        entry |= {
            "model": card.model,
            "recipe": spec.values(card.recipe),
            "threat": vars(card.threat),
            "training_threat": vars(card.training_threat),
            "note": card.note,
        }
    return entry
