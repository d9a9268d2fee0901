"""Hardness Manipulation with Gradual Adversary and Intra-Class Structure.

Zhou and Patel, CVPR 2022. All three images of a source triplet are perturbed until its hardness
H~ = d(a~, p~) - d(a~, n~) reaches a destination hardness H_D:

    minimise over the three perturbations  max(0, H_D - H~)^2

and the model learns by the triplet loss on (a~, p~, n~). A triplet that has reached H_D has zero
gradient and stays as it is, so it leaves the batch of PGD. One that is there from the start is
recognised by the embeddings that it was mined on, and never enters.

``reuse`` embeds each clean image once in a step. Mining, the triplets that PGD left alone, and the
clean anchors and positives of ICS all read the same embeddings. The loss is the same, and its
gradient up to the order of summation (1e-6 of its norm on a CPU). It has no effect on a network
that embeds differently in training, such as one whose batch norm is not frozen.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from dmlbench.attacks.engine.objective import RowWise
from dmlbench.attacks.engine.optimizer import Perturbed
from dmlbench.common.lazy import torch
from dmlbench.core.papers import HM
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.defenses.base import (
    DEFENSES,
    SAMPLER_NAMES,
    AdversarialDefense,
    Batch,
    State,
    StepOutput,
    hardness,
    hardness_and_gradient,
    triplet_loss,
)
from dmlbench.defenses.samplers import INITIAL, Triplets, own_positive_offset
from dmlbench.metrics.distance import Metric, rowwise

if TYPE_CHECKING:
    from dmlbench.compute.embedding import EmbeddingModel
    from dmlbench.core.protocol import TrainingThreat


GRADUAL = {"lga": "g_LGA", "g_2": "g_2", "g_half": "g_1/2"}
"""Gradual adversaries H_D = -gamma l^power (HM and its supplement): name -> the paper's name.
l is ``HardnessManipulation.ease``."""
POWER = {"lga": 1.0, "g_2": 2.0, "g_half": 0.5}


@dataclass(frozen=True)
class HardnessObjective(RowWise):
    """max(0, H_D - H)^2 of triplets; ``destination`` is H_D, (T,).

    ``offset`` is added to the anchor in each difference.
    """

    metric: Metric
    destination: torch.Tensor
    offset: float = 0.0

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (T,) and gradients (T, 3, D) for embeddings (T, 3, D) of a, p, n."""
        h, dh = hardness_and_gradient(e, self.metric, self.offset)
        gap = (self.destination - h).relu()
        return gap.square(), -2 * gap[:, None, None] * dh


@DEFENSES.register
@dataclass(frozen=True, kw_only=True)
class HardnessManipulation(AdversarialDefense):
    """HM[source, destination], with ICS where ``ics`` > 0."""

    card = Card("hm", "Hardness Manipulation with Gradual Adversary (LGA) and ICS", HM)

    source: str = parameter("softhard", "sampler of the source triplets", choices=SAMPLER_NAMES)
    destination: str = parameter(
        "lga",
        "destination hardness: a gradual adversary, a constant level, or another sampler's",
        choices=(*GRADUAL, "constant", *SAMPLER_NAMES),
    )
    level: float = parameter(0.0, "H_D of destination=constant", at_least=-2, at_most=2)
    xi: float = parameter(
        0.0, "g_B: how far a sampler's H_D is raised as the loss falls", at_least=0
    )
    u: float | None = parameter(
        None, "g_B, gradual: loss at which H_D begins to rise; auto: margin", above=0
    )
    ics: float | None = parameter(
        None, "weight lambda of the Intra-Class Structure loss; auto: the data set's", at_least=0
    )
    ics_margin: float = parameter(0.0, "margin of the Intra-Class Structure loss", at_least=0)
    reuse: bool = parameter(
        False, "embed each clean image once a step: quicker, with other last bits", late=True
    )

    def __post_init__(self) -> None:
        """Refuse a key that nothing reads: it would make another row with the same numbers.

        Raises:
            ValueError: there is one, or ICS where nothing is perturbed.
        """
        unread = {
            "level": self.level and self.destination != "constant",
            "xi": self.xi and self.destination not in SAMPLER_NAMES,
            "u": self.u is not None and not self.eased,
            "ics_margin": self.ics_margin and self.ics == 0,
        }
        for key, given in unread.items():
            if given:
                raise ValueError(
                    f"{key} is not read with destination={self.destination},xi={self.xi:g}"
                    f"{',ics=0' if self.ics == 0 else ''}: leave it out"
                )
        if not self.runs_pgd and self.ics != 0:
            raise ValueError(
                f"source={self.source},destination={self.destination} perturbs nothing, and the "
                "Intra-Class Structure loss compares an image with its perturbed one: add ics=0"
                f"{', and leave ics_margin out' if self.ics_margin else ''}"
            )

    @property
    def eased(self) -> bool:
        """True if the destination depends on the previous loss."""
        return self.destination in GRADUAL or self.xi > 0

    @property
    def label(self) -> str:
        """``HM[S,g_LGA]&ICS``."""
        goal = INITIAL.get(self.destination) or GRADUAL.get(self.destination) or f"{self.level:g}"
        goal = f"g_B({goal})" if self.xi else goal
        return f"HM[{INITIAL[self.source]},{goal}]{'' if self.ics == 0 else '&ICS'}"

    @property
    def runs_pgd(self) -> bool:
        """False for HM[X,X], which is plain training."""
        return self.source != self.destination or self.xi > 0

    def resolve(self, threat: TrainingThreat, metric: Metric) -> Self:
        """Fill in u (by default the margin gamma) and the weight of ICS too."""
        filled = super().resolve(threat, metric)
        ics = threat.ics if self.ics is None else self.ics
        u = (self.u or filled.margin) if self.eased else None
        return dataclasses.replace(filled, u=u, ics=ics)

    def step(self, model: EmbeddingModel, batch: Batch, state: State) -> StepOutput:
        """Mine triplets, perturb them to their H_D, take the triplet loss (and ICS) on them."""
        clean = None
        if self.reuse and model.same_in_training:
            clean = batch.gather(model(batch.images[batch.share]))
            batch = dataclasses.replace(batch, embed=clean.detach)
        triplets = self.mine(self.source, batch, model.metric)
        if not len(triplets):
            return StepOutput.empty(batch)
        perturbed = None
        if not self.runs_pgd:  # what ``none`` computes, to the bit
            whole = batch.gather(model(batch.images[batch.share])) if clean is None else clean
            e = whole[triplets.stack()]
        else:
            perturbed = self.manipulate(model, batch, triplets, state)
            e = embed_perturbed(model, batch, triplets, perturbed.images, clean)
        step = self.triplet_step(batch, triplets, e, model.metric, perturbed)
        assert step.loss is not None
        state["previous_loss"] = step.loss.detach()
        if self.ics:
            pairs = torch.cat([triplets.anchor, triplets.positive])
            pair = model(batch.images[pairs]) if clean is None else clean[pairs]
            step.loss = step.loss + self.ics * self.structure_loss(pair, e, model.metric)
        return step

    def manipulate(
        self, model: EmbeddingModel, batch: Batch, triplets: Triplets, state: State
    ) -> Perturbed:
        """Perturb the images of ``triplets`` until their hardness reaches H_D."""
        goal = self.hardness_goal(batch, state, model.metric).expand(len(triplets))
        offset = own_positive_offset(self.source)
        chosen = triplets.stack()
        objective = HardnessObjective(model.metric, goal, offset)
        return self.perturb(model, batch.images[chosen], objective, batch.embeddings[chosen])

    def hardness_goal(self, batch: Batch, state: State, metric: Metric) -> torch.Tensor:
        """H_D: a scalar, or (T,) the hardness of another sampler's triplets of the same anchors."""
        assert self.margin is not None
        if self.destination == "constant":
            return batch.embeddings.new_tensor(self.level)
        if self.destination in GRADUAL:
            ease = self.ease(state, batch.embeddings)
            return -self.margin * ease ** POWER[self.destination]
        triplets = self.mine(self.destination, batch, metric)
        goal = hardness(batch.embeddings[triplets.stack()], metric)
        return goal + self.xi * (1 - self.ease(state, batch.embeddings)) if self.xi else goal

    def ease(self, state: State, like: torch.Tensor) -> torch.Tensor:
        """The factor l = min(u, adversarial loss of the previous step) / u; 1 in the first step.

        HM, section "Gradual Adversary". As the model learns, l falls from 1 and H_D rises.
        """
        assert self.u is not None
        if "previous_loss" not in state:
            return like.new_ones(())
        return state["previous_loss"].to(like).clamp(max=self.u) / self.u

    def structure_loss(
        self, pair: torch.Tensor, adversarial: torch.Tensor, metric: Metric
    ) -> torch.Tensor:
        """The ICS loss: the triplet loss on (a, a~, p), a and p clean; margin 0 in the paper.

        HM, section "Intra-Class Structure". It keeps an anchor closer to its own adversarial image
        than to its positive.

        Args:
            pair: (2T, D) embeddings of the clean anchors, then of the clean positives.
            adversarial: (T, 3, D) embeddings of the perturbed triplets.
            metric: N, E or C.
        """
        a, p = pair.chunk(2)
        h = rowwise(a, adversarial[:, 0], metric) - rowwise(a, p, metric)
        return triplet_loss(h, self.ics_margin)


def embed_perturbed(
    model: EmbeddingModel,
    batch: Batch,
    triplets: Triplets,
    perturbed: torch.Tensor,
    clean: torch.Tensor | None,
) -> torch.Tensor:
    """(T, 3, D) embeddings of ``perturbed`` (T, 3, C, H, W), with gradient in the weights.

    ``clean`` are the embeddings (2B, D) of the clean batch, if they are to be used for triplets
    that PGD left as they were.
    """
    if clean is None:
        return model(perturbed.flatten(0, 1)).view(len(perturbed), 3, -1)  # type: ignore[no-any-return]
    chosen = triplets.stack()
    e = clean[chosen]
    moved = (perturbed != batch.images[chosen]).flatten(1).any(1).nonzero()[:, 0]
    if not len(moved):
        return e
    own = model(perturbed[moved].flatten(0, 1)).view(len(moved), 3, -1)
    return e.index_copy(0, moved, own)
