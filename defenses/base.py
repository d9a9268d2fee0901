"""The base of defenses: a defense turns a batch into a training loss.

The engine (``dmlbench.training.trainer``) owns the data, the optimizer, checkpoints and progress. A
defense mines triplets, may perturb them by PGD, and returns the loss to minimise.
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
from dmlbench.common.errors import UserError
from dmlbench.common.lazy import torch
from dmlbench.core import spec
from dmlbench.core.registry import Component, Registry
from dmlbench.core.spec import parameter
from dmlbench.defenses.samplers import SAMPLERS, Triplets, sample
from dmlbench.metrics.collapse import mean_cosine
from dmlbench.metrics.distance import Metric, rowwise, rowwise_gradient

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
        hardness: scalar, mean of d(a, p) - d(a, n) over the triplets that the loss is taken on.
        mean_cosine: scalar, mean pairwise cosine of the clean batch; near 1 in a collapse.
        weight: of this process's share in the mean over all processes (``Triplets.weight``).
        passes: adversarial forward-backward passes spent, each with one of the groups of images
            that the defense perturbs together (a triplet of HM, a pair of ACT, an image of EST).
        full_passes: what they would have been without the active set.
        after: called with the state when the gradients of the loss are known, in all processes.
            It may write into the state only values that are the same in all processes.
    """

    loss: torch.Tensor | None
    hardness: torch.Tensor
    mean_cosine: torch.Tensor
    weight: float
    passes: int = 0
    full_passes: int = 0
    after: Callable[[State], None] | None = None

    @classmethod
    def empty(cls, batch: Batch) -> StepOutput:
        """The step of a batch that holds a single class, and so no triplet: nothing is learned."""
        return cls(None, torch.tensor(torch.nan), batch.mean_cosine, 1 / batch.world.size)


State = dict[str, "torch.Tensor"]
"""Name -> tensor that a defense keeps from step to step; the trainer saves it with each epoch.
Each tensor must be a mean over the triplets of a step: where several processes train, the trainer
replaces it by the mean over all of them."""


@dataclass(frozen=True)
class Batch:
    """A batch of clean images, as a defense gets it.

    Attributes:
        images: (2B, C, H, W) in [0, 1]; anchors at even positions, their positives after them.
        labels: (2B,).
        embed: computes ``embeddings``; called at the first use of them, if there is one.
        generator: random numbers of this step, on the images' device; the same in all processes.
        world: the processes that share the batch.
        companion: the loss as a module (``Defense.companion``), if the defense has one.
        progress: the share of the epochs that are finished, in [0, 1); 0 in the first epoch.
    """

    images: torch.Tensor
    labels: torch.Tensor
    embed: Callable[[], torch.Tensor]
    generator: torch.Generator
    world: World
    companion: nn.Module | None = None
    progress: float = 0.0

    @cached_property
    def embeddings(self) -> torch.Tensor:
        """(2B, D) clean embeddings in eval mode, without gradient.

        Several processes compute them together: all must use them, or none.
        """
        return self.embed()

    @property
    def mean_cosine(self) -> torch.Tensor:
        """Mean pairwise cosine of ``embeddings``, a scalar; near 1 in a collapse."""
        return mean_cosine(self.embeddings)

    @property
    def share(self) -> slice:
        """The positions of the images that this process works on."""
        return self.world.share(len(self.images))

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """(2B, ...) rows of the whole batch, of which ``rows`` is this process's share.

        Differentiable.
        """
        return self.world.gather(rows, len(self.images))


@dataclass(frozen=True, kw_only=True)
class Defense(Component, abc.ABC):
    """A way to train a model.

    A field that is None (``auto``) is filled in from the data set's card, or by the metric.
    """

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
        """The loss of one batch. The model is in train mode, and is left in train mode.

        A name in ``state`` that is new or changed is seen by the next step.
        """

    def resolve(self, threat: TrainingThreat, metric: Metric) -> Self:
        """The defense with every ``auto`` field filled in.

        Raises:
            UserError: a sampler is not defined for the metric.
        """
        samplers = {getattr(self, key, None) for key in ("sampler", "source", "destination")}
        if metric == "E" and "distance" in samplers:
            raise UserError(
                "the sampler 'distance' is defined for embeddings of length 1, metrics N and C: "
                "with the metric E take another one, such as semihard"
            )
        return dataclasses.replace(self, margin=self.margin or MARGIN[metric])

    def check_network(self, network: nn.Module) -> None:
        """Refuse a network that this defense cannot train; called before the first step.

        Raises:
            UserError: it is such a network; the message says why.
        """
        return None

    def check_epochs(self, epochs: int) -> None:
        """Refuse a training that is too short for this defense; called before the first step.

        Raises:
            UserError: it is too short; the message says why.
        """
        return None

    @property
    def training_cost(self) -> int:
        """Forward-backward passes of a training step: eta + 1, and 1 without an adversary."""
        return 1

    @property
    def replays(self) -> int:
        """Steps in a row on each batch. An epoch takes so many fewer batches, drawn at random."""
        return 1

    def companion(self, classes: int, dim: int, metric: Metric) -> nn.Module | None:
        """A loss module; its parameters, e.g. one proxy a class, are learned with the network.

        Args:
            classes: number of classes of the train split.
            dim: D of the embeddings.
            metric: N, E or C.
        """
        return None

    def mine(
        self, sampler: str, batch: Batch, metric: Metric, embeddings: torch.Tensor | None = None
    ) -> Triplets:
        """The triplets of ``mine_whole`` that this process works on."""
        return self.mine_whole(sampler, batch, metric, embeddings).share(batch.world)

    def mine_whole(
        self,
        sampler: str,
        batch: Batch,
        metric: Metric,
        embeddings: torch.Tensor | None = None,
        margin: float | None = None,
    ) -> Triplets:
        """One triplet for each pair of the batch, by the named sampler; alike in all processes.

        Args:
            sampler: a name in ``SAMPLERS``.
            batch: the batch; one that holds a single class has no triplet.
            metric: N, E or C.
            embeddings: (2B, D) whose distances the sampler reads; the clean embeddings by default.
            margin: the window of semihard; the margin of the triplet loss by default.
        """
        e = batch.embeddings if embeddings is None else embeddings
        margin = margin or self.margin or MARGIN[metric]
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
            triplets: from ``mine`` or ``mine_whole``; if there are none, the step learns nothing.
            e: (T, 3, D) embeddings of their anchors, positives and negatives, with gradient.
            metric: N, E or C.
            perturbed: the result of ``perturb``, for its cost; None if nothing was perturbed.
            loss: a scalar to minimise instead of the triplet loss.
        """
        if not len(triplets):
            return StepOutput.empty(batch)
        h = hardness(e, metric)
        if loss is None:
            loss = triplet_loss(h, self.margin or MARGIN[metric])
        passes = (perturbed.passes, perturbed.full_passes) if perturbed else (0, 0)
        return StepOutput(loss, h.detach().mean(), batch.mean_cosine, triplets.weight, *passes)

    def loss_step(
        self,
        batch: Batch,
        whole: Triplets,
        e: torch.Tensor,
        metric: Metric,
        mined: bool = True,
        perturbed: Perturbed | None = None,
    ) -> StepOutput:
        """The end of a step that embedded the whole batch: the companion's loss, if there is one.

        Args:
            batch: the batch.
            whole: from ``mine_whole``.
            e: (2B, D) embeddings of the batch, gathered from all processes, with gradient.
            metric: N, E or C.
            mined: True if the companion reads triplets, not the labels alone.
            perturbed: as in ``triplet_step``.
        """
        if batch.companion is None or not len(whole):
            triplets = whole.share(batch.world)
            return self.triplet_step(batch, triplets, e[triplets.stack()], metric, perturbed)
        # no mean over triplets: every process takes the loss on the whole batch
        chosen = (whole.stack().unbind(1),) if mined else ()
        loss = batch.companion(e, batch.labels, *chosen)
        return self.triplet_step(batch, whole, e[whole.stack()], metric, perturbed, loss)


@dataclass(frozen=True, kw_only=True)
class AdversarialDefense(Defense):
    """A defense that perturbs its batch by PGD in eval mode.

    That is the inner problem of adversarial training (Madry et al., ICLR 2018).
    """

    eta: int | None = parameter(None, "PGD steps that perturb a training batch", at_least=1)
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
    def runs_pgd(self) -> bool:
        """False if its keys leave nothing to perturb, so that eta, eps and alpha are not read."""
        return True

    @property
    def training_cost(self) -> int:
        """Passes of a step that perturbs: eta for it, and one that updates the weights."""
        assert self.eta is not None
        return self.eta + 1 if self.runs_pgd else 1

    def resolve(self, threat: TrainingThreat, metric: Metric) -> Self:
        """Fill in eta, eps and alpha from the data set's training threat.

        Raises:
            UserError: other values are given where nothing reads them: they would make another row
                with the same numbers.
        """
        eps, eta = self.eps or threat.eps, self.eta or threat.eta
        alpha = self.alpha or threat.step(eps, eta)
        usual = {"eta": threat.eta, "eps": threat.eps, "alpha": threat.step(threat.eps, threat.eta)}
        for key, value in {"eta": eta, "eps": eps, "alpha": alpha}.items():
            if not self.runs_pgd and value != usual[key]:
                raise UserError(
                    f"{spec.shown(self)}: {key} is not read, as nothing is perturbed: leave it out"
                )
        filled = dataclasses.replace(self, eps=eps, eta=eta, alpha=alpha)
        return super(AdversarialDefense, filled).resolve(threat, metric)

    @property
    def pgd(self) -> PGD:
        """The search of ``perturb``: eta steps of alpha in the ball of radius eps."""
        assert self.eps is not None
        assert self.eta is not None
        assert self.alpha is not None
        return PGD(self.eps, self.alpha, self.eta)

    def perturb(
        self,
        model: EmbeddingModel,
        images: torch.Tensor,
        objective: Objective,
        known: torch.Tensor | None = None,
        pgd: PGD | None = None,
        start: torch.Tensor | None = None,
    ) -> Perturbed:
        """Minimise ``objective`` over groups of images (T, k, C, H, W), embedded as (T, k, D).

        Args:
            model: the network; it is in eval mode meanwhile.
            images: the clean images.
            objective: the loss of each group.
            known: the embeddings of the clean images, in eval mode. Give them where some groups
                may need no perturbation: those are recognised by them and take no pass.
            pgd: the search, where it is not ``self.pgd``.
            start: where it begins, in the shape of ``images``; the clean images by default.
        """
        from dmlbench.compute.embedding import embed_together, frozen

        def embed_groups(x: torch.Tensor) -> torch.Tensor:
            return embed_together(model, x.flatten(0, 1)).view(*x.shape[:2], -1)

        with frozen(model):
            return (pgd or self.pgd).run(embed_groups, images, objective, start, known)

    def random_start(self, images: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Images plus noise that is uniform in [-eps, eps]; all processes must ask for all rows."""
        assert self.eps is not None
        generator = batch.generator
        noise = torch.rand(images.shape, generator=generator, device=generator.device)
        return images + self.eps * (2 * noise - 1)


def hardness(e: torch.Tensor, metric: Metric) -> torch.Tensor:
    """H(a, p, n) = d(a, p) - d(a, n), (T,), of the embeddings (T, 3, D) of triplets (HM)."""
    a, p, n = e[:, 0], e[:, 1], e[:, 2]
    return rowwise(a, p, metric) - rowwise(a, n, metric)


def hardness_and_gradient(
    e: torch.Tensor, metric: Metric, offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """H (T,) of embeddings (T, 3, D), and its gradient (T, 3, D).

    ``offset`` is added to the anchor in each difference (RobRank adds 1e-6).
    """
    a, p, n = e.unbind(1)
    a = a + offset if offset else a
    h = rowwise(a, p, metric) - rowwise(a, n, metric)
    from_p = rowwise_gradient(a, p, metric)
    from_n = rowwise_gradient(a, n, metric)
    at_p = rowwise_gradient(p, a, metric)
    at_n = rowwise_gradient(n, a, metric)
    return h, torch.stack([from_p - from_n, at_p, -at_n], dim=1)


def triplet_loss(hardness: torch.Tensor, margin: float) -> torch.Tensor:
    """Mean over triplets of max(0, H + margin) (Schroff et al., CVPR 2015)."""
    return (hardness + margin).relu().mean()


SAMPLER_NAMES = tuple(SAMPLERS)
