"""CA-TRIDE: collapse-aware triplet decoupling (Tian et al., ICML 2024).

Batches take turns. In a CAP batch (candidate perturbation) PGD moves the positives and negatives,
in an ANP batch (anchor perturbation) the anchors. Both read the soft maximum of a distance over
the triplets of the batch,

    S(d) = sum w d / sum w,  w = exp(lambda d)

S(d(a, p)) - S(d(a, n)) is the "collapseness". PGD minimises

    CAP over p~, n~:  max(0, S(d(a, n~)) - S(d(a, p~)))
    ANP over a~:      max(0, S(d(a~, p)) - S(d(a~, n)))
                      + g max(0, mean over the nearest half of d(a~, n) - mean d(a~, a)),
                      g = exp(-max(0, S(d(a~, n)) - S(d(a~, p)))), taken as a constant

by steps of alpha times the share of the epochs that are finished: the first epoch is clean. The
model learns by the triplet loss on the three images, in some batches (``nearest``) with

    + 1/2 max(0, mean of the nearest half of d(a, p) - mean of the nearest half of d(a, n) + 0.04)

Negatives are semihard in a window of gamma (1 - progress / 2)^2 above d(a, p).

Source: ``CAP``, ``ANP`` and ``pnp_training_step`` in defenses/pnp.py, ``fn_ptriplet_kernel`` in
losses/triplet.py and ``__miner_spc2_gradualhard`` in losses/miner.py of michaeltian108/CA-TRIDE
(commit 55366aa). As released its training step does not run: names that it reads are defined
nowhere. Its loss adds the last term in every second call. Called once a batch, those are the ANP
batches (``nearest=second``); its training step calls it on the clean batch too, for the log, and
then every batch has the term (``nearest=every``). lambda is 10 on CUB, 9.5 on Cars and 2 on SOP.
The paper's own metric, ARS, is not measured here: no source that could be read defines it.
"""

from __future__ import annotations

import abc
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from dmlbench.attacks.engine.objective import RowWise
from dmlbench.common.errors import UserError
from dmlbench.common.lazy import torch
from dmlbench.core.papers import Paper
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.defenses.base import (
    DEFENSES,
    MARGIN,
    AdversarialDefense,
    Batch,
    State,
    StepOutput,
    hardness,
    triplet_loss,
)
from dmlbench.metrics.distance import Metric

if TYPE_CHECKING:
    from dmlbench.compute.distributed import World
    from dmlbench.compute.embedding import EmbeddingModel
    from dmlbench.core.protocol import TrainingThreat

CA_TRIDE = Paper(
    key="tian2024catride",
    title="Collapse-Aware Triplet Decoupling for Adversarially Robust Image Retrieval",
    authors="Tian, Qiwei and Lin, Chenhao and Zhao, Zhengyu and Li, Qian and Shen, Chao",
    venue="ICML",
    year=2024,
    url="https://arxiv.org/abs/2312.07364",
)
ENOUGH = 1e-5  # PGD stops at a loss below it
HALF_WEIGHT, HALF_MARGIN = 0.5, 0.04  # of the term of the nearest half
SECOND, EVERY = "second", "every"
TURN = "anp"  # state: 1 if the next batch is an ANP batch, 0 if it is a CAP batch


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(T,) Euclidean distances; 1e-6 in each component gives a slope where both are equal."""
    return torch.nn.functional.pairwise_distance(a, b)


def soft_maximum(d: torch.Tensor, sharpness: float) -> torch.Tensor:
    """S(d), a scalar, of distances (T,); ``sharpness`` is lambda."""
    return (torch.softmax(sharpness * d, dim=0) * d).sum()


def nearest_half(d: torch.Tensor) -> torch.Tensor:
    """The mean of the smaller half of the distances (T,), of at least one."""
    return d.topk(max(1, len(d) // 2), largest=False).values.mean()


@dataclass(frozen=True)
class WholeBatch(RowWise, abc.ABC):
    """One loss of all triplets together: none of them may leave the batch of PGD.

    Attributes:
        clean: (T, 3, D) embeddings of the clean triplets, of all processes.
        sharpness: lambda.
        world: the processes that share the batch.
    """

    clean: torch.Tensor
    sharpness: float
    world: World

    @abc.abstractmethod
    def loss(self, e: torch.Tensor) -> torch.Tensor:
        """A scalar, of the embeddings (T, k, D) of what PGD moves."""

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss for each of this process's triplets, and the gradients of its ``e``."""
        count = len(self.clean)
        whole = self.world.gather(e.detach(), count).requires_grad_(True)
        with torch.enable_grad():
            loss = self.loss(whole)
        (gradient,) = torch.autograd.grad(loss, whole)
        loss = loss.detach()
        gradient = gradient[self.world.share(count)] * (loss >= ENOUGH)
        return loss.expand(len(e)), gradient


@dataclass(frozen=True)
class CandidatePerturbation(WholeBatch):
    """CAP: positives and negatives (T, 2, D) move."""

    def loss(self, e: torch.Tensor) -> torch.Tensor:
        """max(0, S(d(a, n~)) - S(d(a, p~)))."""
        anchor = self.clean[:, 0]
        to_p = soft_maximum(distance(e[:, 0], anchor), self.sharpness)
        to_n = soft_maximum(distance(anchor, e[:, 1]), self.sharpness)
        return (to_n - to_p).relu()


@dataclass(frozen=True)
class AnchorPerturbation(WholeBatch):
    """ANP: anchors (T, 1, D) move."""

    def loss(self, e: torch.Tensor) -> torch.Tensor:
        """The sum of the two terms."""
        moved = e[:, 0]
        a, p, n = self.clean.unbind(1)
        d_n = distance(moved, n)
        to_p = soft_maximum(distance(p, moved), self.sharpness)
        to_n = soft_maximum(d_n, self.sharpness)
        weight = (-(to_n - to_p).relu()).exp().detach()
        near = (nearest_half(d_n) - distance(moved, a).mean()).relu()
        return (to_p - to_n).relu() + weight * near


@DEFENSES.register
@dataclass(frozen=True, kw_only=True)
class CollapseAwareTripletDecoupling(AdversarialDefense):
    """CA-TRIDE."""

    card = Card("ca-tride", "CA-TRIDE: candidates and anchors perturbed in turns", CA_TRIDE)

    eta: int = parameter(16, "PGD steps that perturb a training batch", at_least=1)
    lambda_: float = parameter(
        10.0, "sharpness of the soft maximum: 10 on CUB, 9.5 on Cars, 2 on SOP", above=0
    )
    nearest: str = parameter(
        SECOND,
        "batches whose loss has the term of the nearest half: second (the ANP batches) or every",
        choices=(SECOND, EVERY),
    )

    @property
    def label(self) -> str:
        """``CA-TRIDE``."""
        return "CA-TRIDE"

    def resolve(self, threat: TrainingThreat, metric: Metric) -> Self:
        """Fill in what is ``auto``; the margin is 0.2 under E, too, as in the authors' code.

        Raises:
            UserError: the metric is C.
        """
        if metric == "C":
            raise UserError("ca-tride is defined for the metrics N and E; C is none of them")
        margin = self.margin or MARGIN["N"]
        return super(
            CollapseAwareTripletDecoupling, dataclasses.replace(self, margin=margin)
        ).resolve(threat, metric)

    def check_epochs(self, epochs: int) -> None:
        """Refuse one epoch, as the steps of the first one have no length.

        Raises:
            UserError: it is one epoch.
        """
        if epochs < 2:
            raise UserError(
                "defense ca-tride: the PGD steps of the first epoch have no length, so one epoch "
                "perturbs nothing: take two or more (--recipe epochs=2)"
            )

    def step(self, model: EmbeddingModel, batch: Batch, state: State) -> StepOutput:
        """Mine clean triplets, perturb candidates or anchors, take the loss."""
        assert self.margin is not None
        window = self.margin * (1 - batch.progress / 2) ** 2
        whole = self.mine_whole("semihard", batch, model.metric, margin=window)
        if not len(whole):
            return StepOutput.empty(batch)
        turn = state.get(TURN, batch.embeddings.new_zeros(()))
        state[TURN] = 1 - turn
        anchors = bool(turn > 0.5)
        chosen, own = whole.stack(), batch.world.share(len(whole))
        images = batch.images[chosen[own]]
        moved = slice(0, 1) if anchors else slice(1, 3)
        kind = AnchorPerturbation if anchors else CandidatePerturbation
        objective = kind(batch.embeddings[chosen], self.lambda_, batch.world)
        perturbed = None
        if batch.progress:  # the steps of the first epoch have no length
            pgd = self.pgd
            pgd = dataclasses.replace(pgd, alpha=pgd.alpha * batch.progress, active_set=False)
            perturbed = self.perturb(model, images[:, moved], objective, pgd=pgd)
            images[:, moved] = perturbed.images
        e = model(images.flatten(0, 1)).view(len(images), 3, -1)
        # no mean over triplets: every process takes the loss on all of them
        e = batch.world.gather(e, len(whole))
        loss = self.loss(e, model.metric, anchors or self.nearest == EVERY)
        step = self.triplet_step(batch, whole, e, model.metric, perturbed, loss)
        step.full_passes = len(images) * self.eta
        return step

    def loss(self, e: torch.Tensor, metric: Metric, with_nearest: bool) -> torch.Tensor:
        """The triplet loss of triplets (T, 3, D), a scalar, with the term of the nearest half."""
        assert self.margin is not None
        loss = triplet_loss(hardness(e, metric), self.margin)
        if not with_nearest:
            return loss
        a, p, n = e.unbind(1)
        gap = nearest_half(distance(a, p)) - nearest_half(distance(a, n))
        return loss + HALF_WEIGHT * (gap + HALF_MARGIN).relu()
