"""NES on the top-1: the losses of ``dmlbench.attacks.top1`` without their gradients.

RobRank has an NES too, whose scores for LTM are wrong: the k-th noisy copy of an image is scored
with the class mask of the k-th query of the batch, and not with that of its own query.

Distances are seen, and no gradient is taken. The estimate, and the steps along it, are in
``dmlbench.attacks.engine.nes``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from dmlbench.attacks.base import ATTACKS
from dmlbench.attacks.black_box import TopOneBlackBox, columns
from dmlbench.attacks.engine.nes import NES
from dmlbench.attacks.top1 import LOSSES
from dmlbench.core.papers import Paper
from dmlbench.core.protocol import Threat
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter

ILYAS = Paper(
    key="ilyas2018blackbox",
    title="Black-box Adversarial Attacks with Limited Queries and Information",
    authors="Ilyas, Andrew and Engstrom, Logan and Athalye, Anish and Lin, Jessy",
    venue="ICML",
    year=2018,
    url="https://arxiv.org/abs/1804.08598",
)
MOMENTUM = 0.9


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class NESAttack(TopOneBlackBox):
    """Sign steps along estimated gradients."""

    card = Card("nes", "break the top-1 along gradients estimated from distances", ILYAS)
    columns = columns("NES")
    auto = "alpha=the step of PGD on the data set, in every suite"

    loss: str = parameter(  # type: ignore[misc]  # of the others it is a constant of the class
        "margin", "the loss that is minimised", choices=tuple(LOSSES)
    )
    samples: int = parameter(10, "images that a gradient is estimated from, in pairs", at_least=2)
    sigma: float = parameter(
        4 / 255, "standard deviation of their noise", above=0, at_most=1, pixels=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples % 2:
            raise ValueError("samples must be even: the images come in pairs")

    def resolve(self, threat: Threat) -> Self:
        """Fill in the size of a step too."""
        resolved = super().resolve(threat)
        return replace(resolved, alpha=self.alpha or threat.alpha)

    def search(self, active_set: bool = True, draws: int = 1) -> NES:
        """The search along estimates."""
        eps, alpha = self.filled(self.eps), self.filled(self.alpha)
        return NES(eps, self.budget, alpha, self.samples, self.sigma, MOMENTUM, bits=self.bits)
