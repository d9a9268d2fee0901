"""No defense: the triplet loss on clean triplets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmlbench.defenses.base import (
    DEFENSES,
    SAMPLER_NAMES,
    Clean,
    Defense,
    State,
    Step,
    hardness,
    triplet_loss,
)
from dmlbench.defenses.samplers import INITIAL
from dmlbench.papers import FACENET
from dmlbench.registry import Card
from dmlbench.spec import parameter

if TYPE_CHECKING:
    from dmlbench.embedding import EmbeddingModel


@DEFENSES.register
@dataclass(frozen=True, kw_only=True)
class NoDefense(Defense):
    """Plain deep metric learning."""

    card = Card("none", "no defense: the triplet loss on clean triplets", FACENET)

    sampler: str = parameter("random", "triplet sampler", choices=SAMPLER_NAMES)

    @property
    def label(self) -> str:
        """``N/A[R]``."""
        return f"N/A[{INITIAL[self.sampler]}]"

    def step(self, model: EmbeddingModel, clean: Clean, state: State) -> Step:
        """Forward the batch once and take the loss on the sampled triplets."""
        assert self.margin is not None
        triplets = self.mine(self.sampler, clean, model.metric)
        if not len(triplets):
            return Step.empty(clean)
        e = model(clean.images)
        h = hardness(e[triplets.stack()], model.metric)
        return Step(triplet_loss(h, self.margin), h.detach().mean(), clean.spread)
