"""GOAT: adversarial training with guides (Bouniot et al., CVPR Workshops 2020).

It is made for person re-identification. Every image x of the batch is perturbed by the attack FNA:
away from embeddings of its own class (the pushing guides g), and towards
the embedding that is furthest from its own in the batch (the pulling guide h),

    minimise over x~  |f(x~) - f(h)|^2 - sum over the guides |f(x~) - f(g)|^2

by PGD from a random start. The model learns by the triplet loss on triplets that are mined on the
embeddings f(x~), as EST does.

Source: ``create_adv_batch`` in utils/evaluation.py of CEA-LIST/adv-reid, with --push and --pull.
That code draws four pushing guides from all images of the class in the train split, and trains by
the hardest triplets under the margin 10, or by cross entropy. Here the guides are drawn from the
rest of the class in the batch, the sampler is a key, and the margin is that of the other defenses;
so are eps, eta and alpha (there 5/255, 7 steps, 1/255). There the images are perturbed in train
mode, with the statistics of the batch in its batch norms; here in eval mode, as by all defenses. As
there, the pulling guide may be of any class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmlbench.attacks.engine.objective import RowWise
from dmlbench.common.lazy import torch
from dmlbench.core.papers import BOUNIOT
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.defenses.base import (
    DEFENSES,
    SAMPLER_NAMES,
    AdversarialDefense,
    Batch,
    State,
    StepOutput,
)
from dmlbench.defenses.samplers import INITIAL
from dmlbench.metrics.distance import Metric, pairwise

if TYPE_CHECKING:
    from dmlbench.compute.embedding import EmbeddingModel


@dataclass(frozen=True)
class GuidedObjective(RowWise):
    """|e - h|^2 - sum |e - g|^2 of images embedded as (B, 1, D).

    Attributes:
        push: (B, k, D) embeddings g that the image leaves.
        pull: (B, D) embeddings h that it approaches.
    """

    push: torch.Tensor
    pull: torch.Tensor

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (B,) and gradients (B, 1, D)."""
        to_h, to_g = e - self.pull[:, None], e - self.push
        loss = to_h.square().sum((1, 2)) - to_g.square().sum((1, 2))
        return loss, 2 * (to_h - to_g.sum(1, keepdim=True))


@DEFENSES.register
@dataclass(frozen=True, kw_only=True)
class GuidedOnlineTraining(AdversarialDefense):
    """GOAT[sampler]."""

    card = Card("goat", "GOAT: each image away from its class, towards the furthest image", BOUNIOT)

    sampler: str = parameter("random", "triplet sampler", choices=SAMPLER_NAMES)
    guides: int = parameter(4, "images of its class that each image is pushed from", at_least=1)

    @property
    def label(self) -> str:
        """``GOAT[R]``."""
        return f"GOAT[{INITIAL[self.sampler]}]"

    def objective(self, batch: Batch, metric: Metric) -> GuidedObjective:
        """The guides of all images of the batch, of which the pushing ones are drawn."""
        e, count = batch.embeddings, len(batch.images)
        itself = torch.eye(count, dtype=torch.bool, device=e.device)
        mates = (batch.labels[:, None] == batch.labels[None, :]) & ~itself
        drawn = torch.multinomial(mates.float(), self.guides, True, generator=batch.generator)
        furthest = pairwise(e, e, metric).masked_fill(itself, -torch.inf).argmax(1)
        return GuidedObjective(e[drawn], e[furthest])

    def step(self, model: EmbeddingModel, batch: Batch, state: State) -> StepOutput:
        """Perturb the batch, mine triplets on the result, and take the loss on them."""
        own = torch.arange(len(batch.images), device=batch.images.device)[batch.share]
        objective = self.objective(batch, model.metric).take(own)
        start = self.random_start(batch.images, batch)[own, None]
        perturbed = self.perturb(model, batch.images[own, None], objective, start=start)
        e = batch.gather(model(perturbed.images[:, 0]))
        whole = self.mine_whole(self.sampler, batch, model.metric, e.detach())
        return self.loss_step(batch, whole, e, model.metric, perturbed=perturbed)
