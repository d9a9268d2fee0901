"""A frozen backbone with a robust head: adversarial linear probing (Hua et al., CVPR 2024).

In the first epochs (``clean``, a share of them) the whole network learns by the triplet loss on
clean batches. Then all but its last layer is frozen, and that layer alone learns, by ACT: PGD
pulls the positive and the negative of each triplet together through the whole network, and the loss
is the triplet loss on (a, p~, n~). By AMD, the triplet's counterpart of the paper's adversary, the
head collapsed on fashion-mini (mean cosine 1.0). Robustness that the frozen layers do not have, the
head can hardly add: the paper finds that a linear probe keeps the robustness of its backbone.

With published weights no clean epoch is needed: ``clean=0``. The head is the last layer that has
parameters: ``fc`` of a ResNet, the last linear layer of the small networks. A network without one
(``head=none``) is refused.

The paper probes classifiers; the triplet loss and the clean epochs are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmlbench.common.errors import UserError
from dmlbench.core.papers import Paper
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.defenses.act import AntiCollapseTriplet
from dmlbench.defenses.base import (
    DEFENSES,
    SAMPLER_NAMES,
    AdversarialDefense,
    Batch,
    State,
    StepOutput,
)
from dmlbench.defenses.samplers import INITIAL

if TYPE_CHECKING:
    from torch import nn

    from dmlbench.compute.embedding import EmbeddingModel

PROBING = Paper(
    key="hua2024initialization",
    title="Initialization Matters for Adversarial Transfer Learning",
    authors="Hua, Andong and Gu, Jindong and Xue, Zhiyu and Carlini, Nicholas and "
    "Wong, Eric and Qin, Yao",
    venue="CVPR",
    year=2024,
    url="https://arxiv.org/abs/2312.05716",
)


def last_layer(model: nn.Module) -> tuple[str, nn.Module]:
    """Name and module of the last layer that has parameters."""
    every = [
        (name, layer)
        for name, layer in model.named_modules()
        if any(True for _ in layer.parameters(recurse=False))
    ]
    return every[-1]


@contextmanager
def head_alone(model: nn.Module) -> Iterator[None]:
    """Freeze all but the last layer with parameters, within a ``with`` block.

    The frozen layers are in eval mode and their parameters get no gradient. Afterwards both are as
    they were before.
    """
    from dmlbench.compute.embedding import held

    _, head = last_layer(model)
    own = {id(p) for p in head.parameters(recurse=False)}
    trainable = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    training = [m for m in model.modules() if m.training and m is not head]
    with held(training, trainable):
        yield


@DEFENSES.register
@dataclass(frozen=True, kw_only=True)
class RobustHead(AdversarialDefense):
    """HEAD[sampler]."""

    card = Card("head", "a frozen backbone, and ACT for its last layer alone", PROBING, version=2)

    sampler: str = parameter("random", "triplet sampler", choices=SAMPLER_NAMES)
    clean: float = parameter(
        0.5,
        "share of the epochs that first train the whole network on clean batches",
        at_least=0,
        at_most=1,
    )

    @property
    def label(self) -> str:
        """``HEAD[R]``."""
        return f"HEAD[{INITIAL[self.sampler]}]"

    @property
    def act(self) -> AntiCollapseTriplet:
        """The defense that the head learns by."""
        shared = ("sampler", "margin", "eta", "eps", "alpha")
        return AntiCollapseTriplet(**{name: getattr(self, name) for name in shared})

    @property
    def runs_pgd(self) -> bool:
        """False if every epoch is a clean one."""
        return self.clean < 1

    def check_network(self, network: nn.Module) -> None:
        """Refuse a network that ends in a layer which only scales, such as a batch norm.

        Raises:
            UserError: it is such a network.
        """
        name, head = last_layer(network)
        if self.runs_pgd and all(p.ndim < 2 for p in head.parameters(recurse=False)):
            raise UserError(
                f"defense head: the last layer with parameters, {name} ({type(head).__name__}), "
                "only scales what the frozen layers give, so there is no head to train: take a "
                "network that ends in a linear layer (head=fc)"
            )

    def check_epochs(self, epochs: int) -> None:
        """Refuse a training of clean epochs alone, whose head would learn nothing.

        Raises:
            UserError: it is such a training.
        """
        if self.runs_pgd and (epochs - 1) / epochs < self.clean:
            raise UserError(
                f"defense head: of {epochs} epochs all are clean (clean={self.clean:g}), so its "
                "head is never trained: take more epochs (--recipe epochs=...), or clean=1 for a "
                "training on clean images alone"
            )

    def step(self, model: EmbeddingModel, batch: Batch, state: State) -> StepOutput:
        """Train the whole network on the clean batch, or its head on perturbed triplets."""
        if batch.progress >= self.clean:
            with head_alone(model):
                return self.act.step(model, batch, state)
        assert self.eta is not None
        e = batch.gather(model(batch.images[batch.share]))
        whole = self.mine_whole(self.sampler, batch, model.metric)
        step = self.loss_step(batch, whole, e, model.metric)
        if self.runs_pgd:
            step.full_passes = len(whole.share(batch.world)) * self.eta
        return step
