"""The registries whose entries the command line lists, checks and completes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmlbench.core.registry import Registry

KINDS = ("attacks", "defenses", "datasets", "models")


def registries() -> dict[str, Registry[Any]]:
    """The registry of each of ``KINDS``."""
    from dmlbench.attacks.base import ATTACKS
    from dmlbench.datasets.base import DATASETS
    from dmlbench.defenses.base import DEFENSES
    from dmlbench.models.base import MODELS

    found: tuple[Registry[Any], ...] = (ATTACKS, DEFENSES, DATASETS, MODELS)
    return dict(zip(KINDS, found, strict=True))
