"""Components with a mistake, and the check of the conformance suite that has to find it.

Those of attacks are in ``test_outside.py``, which checks them through the command line.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dmlbench import testing
from dmlbench.core.protocol import Recipe, Threat, TrainingThreat
from dmlbench.datasets.base import Dataset, DatasetCard, RetrievalData
from dmlbench.testing import attacks, datasets, defenses, models


def refused(component: Any, check: str, words: str) -> None:
    """``check`` fails with those words in its reason; only it and what it needs is done."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in (attacks, datasets, defenses, models):
            if check in kind.CHECKS:
                names = [check]
                while names[-1] in kind.NEEDS:
                    names.append(kind.NEEDS[names[-1]])
                patch.setattr(kind, "CHECKS", {one: kind.CHECKS[one] for one in reversed(names)})
        with pytest.raises(testing.ConformanceError) as caught:
            testing.check(component)
    found = {finding.check: finding for finding in caught.value.findings}
    assert found[check].passed is False, str(caught.value)
    assert words in found[check].reason
    assert words in str(caught.value)
    reason = found[check].reason
    assert len(reason) > 30
    assert "\n" not in reason


def changed(base: type[Any], **members: Any) -> type[Any]:
    """A subclass of ``base`` as a plugin would write it in the caller's file, which is checked."""
    caller = sys._getframe(1).f_globals["__name__"]
    made = type("Changed", (base,), {"__module__": caller, **members})
    return dataclass(frozen=True, kw_only=True)(made)


CARD = DatasetCard(
    "made",
    "made images",
    model="c2f2:dim=8",
    recipe=Recipe(epochs=1, pairs=8),
    threat=Threat(eps=0.1, alpha=0.05, steps=2),
    training_threat=TrainingThreat(eps=0.1, eta=2),
)


@dataclass(frozen=True, kw_only=True)
class Made(Dataset):
    card = CARD

    def load(self, data_root: Path | None, cache: object = None) -> RetrievalData:
        return testing.tiny_data()
