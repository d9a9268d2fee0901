"""Hardness Manipulation with Gradual Adversary and Intra-Class Structure (Zhou and Patel).

A source triplet is perturbed, anchor, positive and negative alike, until its hardness
H~ = d(a~, p~) - d(a~, n~) reaches a destination H_D:

    minimise over the three perturbations  max(0, H_D - H~)^2

and the model descends the triplet loss on (a~, p~, n~). A triplet that is at H_D has zero
gradient and stays put, so it leaves the inner problem.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmlbench.attacks.pgd import PGD, Perturbed, RowWise
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
from dmlbench.defenses.samplers import INITIAL, Triplets
from dmlbench.lazy import torch
from dmlbench.metrics.distance import Metric, rowwise, rowwise_gradient
from dmlbench.papers import HM
from dmlbench.registry import Card
from dmlbench.spec import parameter

if TYPE_CHECKING:
    from dmlbench.embedding import EmbeddingModel
    from dmlbench.recipe import TrainingThreat


@dataclass(frozen=True)
class HardnessObjective(RowWise):
    """max(0, H_D - H)^2 of triplets; ``destination`` is H_D, (T,)."""

    metric: Metric
    destination: torch.Tensor

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (T,) and gradients (T, 3, D) for embeddings (T, 3, D) of a, p, n."""
        a, p, n = e.unbind(1)
        gap = (self.destination - hardness(e, self.metric)).relu()
        to_p = rowwise_gradient(a, p, self.metric)
        to_n = rowwise_gradient(a, n, self.metric)
        back_p = rowwise_gradient(p, a, self.metric)
        back_n = rowwise_gradient(n, a, self.metric)
        dh = torch.stack([to_p - to_n, back_p, -back_n], dim=1)
        return gap.square(), -2 * gap[:, None, None] * dh


@DEFENSES.register
@dataclass(frozen=True, kw_only=True)
class HardnessManipulation(Defense):
    """HM[source, destination], with ICS where ``ics`` > 0."""

    card = Card("hm", "Hardness Manipulation with Gradual Adversary (LGA) and ICS", HM)

    eta: int | None = parameter(None, "PGD steps of the inner problem", at_least=1)
    eps: float | None = parameter(
        None, "radius of the training perturbation", above=0, at_most=1, pixels=True
    )
    alpha: float | None = parameter(None, "size of a step", above=0, at_most=1, pixels=True)
    source: str = parameter("softhard", "sampler of the source triplets", choices=SAMPLER_NAMES)
    destination: str = parameter(
        "lga",
        "destination hardness: lga (Linear Gradual Adversary) or another sampler's",
        choices=("lga", *SAMPLER_NAMES),
    )
    ics: float = parameter(0.5, "weight lambda of the Intra-Class Structure loss", at_least=0)

    @property
    def label(self) -> str:
        """``HM[S,g_LGA]&ICS``."""
        goal = "g_LGA" if self.destination == "lga" else INITIAL[self.destination]
        return f"HM[{INITIAL[self.source]},{goal}]{'&ICS' if self.ics else ''}"

    @property
    def training_cost(self) -> int:
        """One pass more than eta; HM[X,X] perturbs nothing."""
        assert self.eta is not None
        return 1 if self.source == self.destination else self.eta + 1

    def resolve(self, threat: TrainingThreat, metric: Metric) -> HardnessManipulation:
        """Fill in eta, eps and alpha from the data set's training threat."""
        eps, eta = self.eps or threat.eps, self.eta or threat.eta
        alpha = self.alpha or threat.step(eps, eta)
        filled = dataclasses.replace(self, eps=eps, eta=eta, alpha=alpha)
        return dataclasses.replace(filled, margin=super().resolve(threat, metric).margin)

    def step(self, model: EmbeddingModel, clean: Clean, state: State) -> Step:
        """Sample, manipulate the hardness, take the triplet loss (and ICS) on the result."""
        assert self.margin is not None
        metric = model.metric
        triplets = self.mine(self.source, clean, metric)
        if not len(triplets):
            return Step.empty(clean)
        images = clean.images[triplets.stack()]
        passes = full_passes = 0
        if self.source != self.destination:
            perturbed = self.perturb(model, images, self.hardness_goal(clean, state, metric))
            images, passes, full_passes = (
                perturbed.images,
                perturbed.passes,
                perturbed.full_passes,
            )
        e = model(images.flatten(0, 1))
        e = e.view(len(triplets), 3, -1)
        h = hardness(e, metric)
        loss = triplet_loss(h, self.margin)
        state["previous_loss"] = loss.detach()
        if self.ics:
            loss = loss + self.ics * self.structure_loss(model, clean, triplets, e)
        return Step(loss, h.detach().mean(), clean.spread, passes, full_passes)

    def hardness_goal(self, clean: Clean, state: State, metric: Metric) -> torch.Tensor:
        """H_D: a scalar for LGA, (T,) for another sampler's triplets with the same anchors."""
        if self.destination == "lga":
            return self.gradual(state, clean.embeddings)
        triplets = self.mine(self.destination, clean, metric)
        return hardness(clean.embeddings[triplets.stack()], metric)

    def gradual(self, state: State, like: torch.Tensor) -> torch.Tensor:
        """LGA (HM, Gradual Adversary): -gamma * l with l = min(u, previous loss) / u, u = gamma.

        It begins at -gamma, as hard as a triplet without loss, and rises to 0 as the model
        learns to withstand it.
        """
        assert self.margin is not None
        if "previous_loss" not in state:
            return like.new_tensor(-self.margin)
        return -state["previous_loss"].clamp(max=self.margin).to(like)

    def perturb(
        self, model: EmbeddingModel, images: torch.Tensor, destination: torch.Tensor
    ) -> Perturbed:
        """Move triplets (T, 3, C, H, W) towards the hardness ``destination``, in eval mode."""
        from dmlbench.embedding import embed, frozen

        assert self.eps is not None
        assert self.eta is not None
        assert self.alpha is not None
        objective = HardnessObjective(model.metric, destination.expand(len(images)))

        def embed_triplets(x: torch.Tensor) -> torch.Tensor:
            return embed(model, x.flatten(0, 1)).view(len(x), 3, -1)

        with frozen(model):
            return PGD(self.eps, self.alpha, self.eta).run(embed_triplets, images, objective)

    def structure_loss(
        self, model: EmbeddingModel, clean: Clean, triplets: Triplets, adversarial: torch.Tensor
    ) -> torch.Tensor:
        """ICS (HM, Intra-Class Structure): triplet(a, a~, p) with margin 0, a and p clean.

        It keeps the adversarial anchor closer to its own clean image than the positive is.
        """
        e = model(clean.images[torch.cat([triplets.anchor, triplets.positive])])
        a, p = e.chunk(2)
        d_adversarial = rowwise(a, adversarial[:, 0], model.metric)
        return (d_adversarial - rowwise(a, p, model.metric)).relu().mean()
