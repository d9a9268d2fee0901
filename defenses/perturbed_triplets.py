"""The base of the defenses that perturb whole triplets and then learn by them: TBC, AMD and ACAP.

Triplets are mined on the clean batch, PGD perturbs anchors, positives and negatives by an
objective of the defense, and the model learns by the triplet loss on (a~, p~, n~).
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmlbench.attacks.engine.objective import Objective
from dmlbench.core.spec import parameter
from dmlbench.defenses.base import (
    SAMPLER_NAMES,
    AdversarialDefense,
    Batch,
    State,
    StepOutput,
)
from dmlbench.defenses.samplers import INITIAL
from dmlbench.metrics.distance import Metric

if TYPE_CHECKING:
    from dmlbench.compute.embedding import EmbeddingModel


@dataclass(frozen=True, kw_only=True)
class PerturbedTriplets(AdversarialDefense, abc.ABC):
    """A defense that is defined by the objective of its PGD."""

    sampler: str = parameter("random", "triplet sampler", choices=SAMPLER_NAMES)

    @property
    def label(self) -> str:
        """The name of its card and its sampler, e.g. ``TBC[R]``."""
        return f"{self.card.name.upper()}[{INITIAL[self.sampler]}]"

    @abc.abstractmethod
    def objective(self, metric: Metric, batch: Batch) -> Objective:
        """The objective that PGD minimises over triplets, which are embedded as (T, 3, D)."""

    def step(self, model: EmbeddingModel, batch: Batch, state: State) -> StepOutput:
        """Mine clean triplets, perturb all three images, take the triplet loss on them."""
        triplets = self.mine(self.sampler, batch, model.metric)
        if not len(triplets):
            return StepOutput.empty(batch)
        objective = self.objective(model.metric, batch)
        perturbed = self.perturb(model, batch.images[triplets.stack()], objective)
        e = model(perturbed.images.flatten(0, 1)).view(len(triplets), 3, -1)
        return self.triplet_step(batch, triplets, e, model.metric, perturbed)
