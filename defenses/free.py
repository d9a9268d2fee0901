"""Free adversarial training: Free-AT (Shafahi et al., NeurIPS 2019), for the triplet loss.

Each batch is used m times in a row. One backward pass gives the gradient of the loss in the weights
and in the images: the first updates the weights, the second the perturbation,

    delta <- clip(delta + alpha sign(dL/dx), -eps, eps)

which the next step, on the same or on the next batch, begins with. alpha is eps in the paper. Here
it is that of PGD in 32 steps, as in RobRank: training by the triplet loss fails if each step is as
long as a large eps (with 77/255 on Fashion-MNIST the loss stays near the margin). A step thus costs
what a step of plain training does. An epoch takes one in m batches, drawn at random, so that the
number of steps stays as it is; the paper runs through all batches in 1/m of the epochs, which is
the same number of steps. Triplets are mined on the perturbed batch, and anew in each step.

The authors' code is mahyarnajibi/FreeAdversarialTraining. RobRank has a version for triplets
(``amd_freeat_step`` in robrank/defenses/freeat.py; m is 4 there too): it perturbs the images of
each triplet apart, mines once a batch, and steps by its alpha.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from dmlbench.common.lazy import torch
from dmlbench.core.papers import Paper
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.defenses.base import DEFENSES, SAMPLER_NAMES, Batch, Defense, State, StepOutput
from dmlbench.defenses.samplers import INITIAL

if TYPE_CHECKING:
    from dmlbench.compute.embedding import EmbeddingModel
    from dmlbench.core.protocol import TrainingThreat
    from dmlbench.metrics.distance import Metric

FREE = Paper(
    key="shafahi2019free",
    title="Adversarial Training for Free!",
    authors="Shafahi, Ali and Najibi, Mahyar and Ghiasi, Amin and Xu, Zheng and "
    "Dickerson, John and Studer, Christoph and Davis, Larry S. and Taylor, Gavin and "
    "Goldstein, Tom",
    venue="NeurIPS",
    year=2019,
    url="https://arxiv.org/abs/1904.12843",
)
ETA = 32  # the steps of PGD in the papers, whose size alpha is
DELTA = "delta"  # state: (2B, C, H, W) perturbation of each place in a batch


@DEFENSES.register
@dataclass(frozen=True, kw_only=True)
class FreeAdversarialTraining(Defense):
    """FREE[sampler]."""

    card = Card("free", "Free-AT: one backward pass updates weights and perturbation", FREE)

    sampler: str = parameter("random", "triplet sampler", choices=SAMPLER_NAMES)
    replays: int = parameter(4, "m: steps in a row on each batch", at_least=1)
    eps: float | None = parameter(
        None, "radius of the training perturbation", above=0, at_most=1, pixels=True
    )
    alpha: float | None = parameter(
        None, "size of a step; auto: that of PGD in 32 steps", above=0, at_most=1, pixels=True
    )

    @property
    def label(self) -> str:
        """``FREE[R]``."""
        return f"FREE[{INITIAL[self.sampler]}]"

    def resolve(self, threat: TrainingThreat, metric: Metric) -> Self:
        """Fill in eps from the data set's training threat, and alpha."""
        eps = self.eps or threat.eps
        filled = dataclasses.replace(self, eps=eps, alpha=self.alpha or threat.step(eps, ETA))
        return super(FreeAdversarialTraining, filled).resolve(threat, metric)

    def step(self, model: EmbeddingModel, batch: Batch, state: State) -> StepOutput:
        """Embed the perturbed batch, mine triplets on it, and take the loss on them.

        Its only forward pass is on perturbed images, so ``mean_cosine`` is theirs.
        """
        before = self.perturbation(batch, state)
        delta = before[: len(batch.images)][batch.share].clone().requires_grad_(True)
        perturbed = (batch.images[batch.share] + delta).clamp(0, 1)
        e = batch.gather(model(perturbed))
        batch = dataclasses.replace(batch, embed=e.detach)
        whole = self.mine_whole(self.sampler, batch, model.metric)
        step = self.loss_step(batch, whole, e, model.metric)

        def ascend(state: State) -> None:
            assert delta.grad is not None
            assert self.alpha is not None
            assert self.eps is not None
            moved = (delta.detach() + self.alpha * delta.grad.sign()).clamp(-self.eps, self.eps)
            state[DELTA] = torch.cat([batch.gather(moved), before[len(batch.images) :]])

        step.after = ascend
        return step

    def perturbation(self, batch: Batch, state: State) -> torch.Tensor:
        """(B', C, H, W), B' >= 2B: what earlier steps left, and zeros where they left nothing."""
        known = state.get(DELTA, batch.images[:0])
        missing = torch.zeros_like(batch.images[len(known) :])
        return torch.cat([known, missing])
