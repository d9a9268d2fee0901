"""The base of defenses: a defense turns a batch into a training loss.

The engine (``dmlbench.training.trainer``) owns the data, the optimiser, checkpoints and progress. A
defense mines triplets, may perturb them with the PGD engine, and returns the loss to descend.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Self

from dmlbench.attacks.engine.objective import Objective
from dmlbench.attacks.engine.optimizer import Perturbed
from dmlbench.attacks.engine.pgd import PGD
from dmlbench.common.lazy import torch
from dmlbench.core.registry import Component, Registry
from dmlbench.core.spec import parameter
from dmlbench.defenses.samplers import SAMPLERS, Triplets, sample
from dmlbench.metrics.collapse import mean_cosine
from dmlbench.metrics.distance import Metric, rowwise

if TYPE_CHECKING:
    from torch import nn

    from dmlbench.compute.distributed import World
    from dmlbench.compute.embedding import EmbeddingModel
    from dmlbench.core.protocol import TrainingThreat

DEFENSES: Registry[Defense] = Registry("defense", "dmlbench.defenses", required=("label", "step"))

MARGIN = {"N": 0.2, "C": 0.2, "E": 1.0}  # RobRank's margins


@dataclass
class StepOutput:
    """The loss of a training step, and what is logged of it.

    Attributes:
        loss: scalar to back-propagate; None if the batch held no triplet.
        hardness: scalar, mean d(a, p) - d(a, n) of the triplets the loss is taken on.
        mean_cosine: scalar, mean pairwise cosine of the clean batch; near 1 in a collapse.
        weight: of this process's share in the mean over all processes (``Triplets.weight``).
        passes: adversarial forward-backward passes spent, counted a triplet.
        full_passes: what they would have been without the active set.
    """

    loss: torch.Tensor | None
    hardness: torch.Tensor
    mean_cosine: torch.Tensor
    weight: float
    passes: int = 0
    full_passes: int = 0

    @classmethod
    def empty(cls, batch: Batch) -> StepOutput:
        """The step of a batch that holds a single class, and so no triplet: nothing is learned."""
        return cls(None, torch.tensor(torch.nan), batch.mean_cosine, 1 / batch.world.size)


State = dict[str, "torch.Tensor"]
"""What a defense carries from step to step, by names of its own; saved with each epoch. Each is a
mean over the step's triplets: several processes take the mean of theirs."""


@dataclass(frozen=True)
class Batch:
    """A batch of clean images, as a defense gets it.

    Attributes:
        images: (2B, C, H, W) in [0, 1]; anchors at even positions, their positives after them.
        labels: (2B,).
        embed: gives ``embeddings``; called once, and not at all where no one asks for them.
        generator: random numbers of this step, on the images' device; in step in all processes.
        world: the processes that share the batch.
        companion: the loss's own parameters (``Defense.companion``), where it has any.
    """

    images: torch.Tensor
    labels: torch.Tensor
    embed: Callable[[], torch.Tensor]
    generator: torch.Generator
    world: World
    companion: nn.Module | None = None

    @cached_property
    def embeddings(self) -> torch.Tensor:
        """(2B, D) clean embeddings in eval mode, without gradient.

        Several processes make them together: all must ask for them, or none.
        """
        return self.embed()

    @property
    def mean_cosine(self) -> torch.Tensor:
        """Mean pairwise cosine of ``embeddings``, a scalar; near 1 in a collapse."""
        return mean_cosine(self.embeddings)

    @property
    def share(self) -> slice:
        """The images that are for this process to work on."""
        return self.world.share(len(self.images))

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """(2B, ...) of the whole batch from each process's rows of its share. Differentiable."""
        return self.world.gather(rows, len(self.images))


@dataclass(frozen=True, kw_only=True)
class Defense(Component, abc.ABC):
    """A way to train. Fields left ``auto`` come from the data set's card or the metric."""

    absent: ClassVar[Mapping[str, str]] = {
        "ics": "Intra-Class Structure (ics) needs an adversarial anchor beside its clean image, "
        "which only HM has: use hm:ics=..."
    }

    margin: float | None = parameter(
        None, "triplet margin gamma; auto: 0.2 for metrics N and C, 1 for E", above=0
    )

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """Its name in the papers' notation, e.g. ``HM[S,g_LGA]&ICS``."""

    @abc.abstractmethod
    def step(self, model: EmbeddingModel, batch: Batch, state: State) -> StepOutput:
        """The loss of one batch. The model comes, and is left, in train mode."""

    def resolve(self, threat: TrainingThreat, metric: Metric) -> Self:
        """The defense with every ``auto`` field filled in."""
        return dataclasses.replace(self, margin=self.margin or MARGIN[metric])

    @property
    def training_cost(self) -> int:
        """Forward-backward passes a step: eta + 1."""
        return 1

    def companion(self, classes: int, dim: int, metric: Metric) -> nn.Module | None:
        """What the loss learns beside the network, e.g. proxies of ``classes`` classes."""
        return None

    def mine(
        self, sampler: str, batch: Batch, metric: Metric, embeddings: torch.Tensor | None = None
    ) -> Triplets:
        """The triplets of ``mine_whole`` that are for this process to work on."""
        return self.mine_whole(sampler, batch, metric, embeddings).share(batch.world)

    def mine_whole(
        self, sampler: str, batch: Batch, metric: Metric, embeddings: torch.Tensor | None = None
    ) -> Triplets:
        """One triplet a pair of the batch, by the named sampler; the same in all processes.

        Args:
            sampler: a name in ``SAMPLERS``.
            batch: the batch; one that holds a single class has no triplet.
            metric: N, E or C.
            embeddings: (2B, D) what distances are taken of; the clean embeddings by default.
        """
        e = batch.embeddings if embeddings is None else embeddings
        margin = self.margin or MARGIN[metric]
        found = sample(sampler, e, batch.labels, metric, margin, batch.generator)
        return dataclasses.replace(found, weight=1 / batch.world.size)

    def triplet_step(
        self,
        batch: Batch,
        triplets: Triplets,
        e: torch.Tensor,
        metric: Metric,
        perturbed: Perturbed | None = None,
        loss: torch.Tensor | None = None,
    ) -> StepOutput:
        """The end of a step: the triplet loss on ``e``, with what is logged.

        Args:
            batch: the batch.
            triplets: by ``mine`` or ``mine_whole``; where there are none, the step learns nothing.
            e: (T, 3, D) embeddings of their anchors, positives and negatives, with gradient.
            metric: N, E or C.
            perturbed: what PGD made of the triplets; None where nothing was perturbed.
            loss: a scalar to descend in place of the triplet loss.
        """
        if not len(triplets):
            return StepOutput.empty(batch)
        h = hardness(e, metric)
        if loss is None:
            loss = triplet_loss(h, self.margin or MARGIN[metric])
        passes = (perturbed.passes, perturbed.full_passes) if perturbed else (0, 0)
        return StepOutput(loss, h.detach().mean(), batch.mean_cosine, triplets.weight, *passes)


@dataclass(frozen=True, kw_only=True)
class AdversarialDefense(Defense):
    """A defense that perturbs its batch by PGD in eval mode (the inner problem)."""

    eta: int | None = parameter(None, "PGD steps of the inner problem", at_least=1)
    eps: float | None = parameter(
        None, "radius of the training perturbation", above=0, at_most=1, pixels=True
    )
    alpha: float | None = parameter(
        None,
        "size of a step; auto: about 1.25 eps/eta where the data set says so",
        above=0,
        at_most=1,
        pixels=True,
    )

    @property
    def training_cost(self) -> int:
        """One pass more than eta."""
        assert self.eta is not None
        return self.eta + 1

    def resolve(self, threat: TrainingThreat, metric: Metric) -> Self:
        """Fill in eta, eps and alpha from the data set's training threat."""
        eps, eta = self.eps or threat.eps, self.eta or threat.eta
        alpha = self.alpha or threat.step(eps, eta)
        filled = dataclasses.replace(self, eps=eps, eta=eta, alpha=alpha)
        return super(AdversarialDefense, filled).resolve(threat, metric)

    def perturb(
        self, model: EmbeddingModel, images: torch.Tensor, objective: Objective
    ) -> Perturbed:
        """Minimise ``objective`` over groups of images (T, k, C, H, W), embedded as (T, k, D)."""
        from dmlbench.compute.embedding import embed, frozen

        assert self.eps is not None
        assert self.eta is not None
        assert self.alpha is not None

        def embed_groups(x: torch.Tensor) -> torch.Tensor:
            return embed(model, x.flatten(0, 1)).view(*x.shape[:2], -1)

        with frozen(model):
            return PGD(self.eps, self.alpha, self.eta).run(embed_groups, images, objective)


def hardness(e: torch.Tensor, metric: Metric) -> torch.Tensor:
    """H(a, p, n) = d(a, p) - d(a, n), (T,), of the embeddings (T, 3, D) of triplets (HM)."""
    a, p, n = e[:, 0], e[:, 1], e[:, 2]
    return rowwise(a, p, metric) - rowwise(a, n, metric)


def triplet_loss(hardness: torch.Tensor, margin: float) -> torch.Tensor:
    """Mean over triplets of max(0, H + margin) (Schroff et al., CVPR 2015)."""
    return (hardness + margin).relu().mean()


SAMPLER_NAMES = tuple(SAMPLERS)
