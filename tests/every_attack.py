"""Every attack that needs no key, with budgets that are enough to see what it does."""

from __future__ import annotations

from typing import Any

import pytest

from dmlbench.attacks.base import ATTACKS

KEYS: dict[str, dict[str, Any]] = {
    "square": {"budget": 30},
    "nes": {"budget": 24},
    "qair": {"budget": 24},
    "oa-list": {"budget": 36},
    "certified": {"samples": 8, "judges": 8, "draws": 2, "steps": 2},
    "uap": {"steps": 12, "batch": 8},
}
EVERY = {
    cls.card.name: cls(**KEYS.get(cls.card.name, {}))
    for cls in ATTACKS
    if cls.card.name != "transfer"  # tests/test_transfer.py has its own
}
LONG = ("certified", "nes", "oa-list", "qair", "radius", "square", "top1")  # of many passes
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in EVERY]
