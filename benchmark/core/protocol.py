"""How a model is trained, and how an adversary is bounded: the numbers of a protocol."""

from __future__ import annotations

from dataclasses import dataclass

from dmlbench.core.registry import Component
from dmlbench.core.spec import parameter

PRECISIONS = ("fp32", "tf32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Recipe(Component):
    """The training hyper-parameters that are not the defense's (Adam, SPC-2 batches)."""

    epochs: int = parameter(8, "passes; each image once as anchor in a pass", at_least=1)
    pairs: int = parameter(128, "same-class pairs a batch", at_least=2)
    lr: float = parameter(1e-3, "Adam's learning rate", above=0, at_most=1e30)
    weight_decay: float = parameter(1e-7, "Adam's L2 penalty", at_least=0)
    precision: str = parameter("fp32", "of the network's passes", choices=PRECISIONS)


SUITES = ("strict", "ers")
ERS_ATTACKS = ("ca+", "ca-", "qa+", "qa-", "tma", "es", "ltm", "gtm", "gtt")  # its ten columns


@dataclass(frozen=True)
class Threat:
    """The adversary of an evaluation.

    Attributes:
        eps: radius of the L-infinity ball, in [0, 1] pixel space.
        alpha: size of a sign step.
        steps: number of steps.
        suite: ``strict`` for the papers' definitions, ``ers`` for the published code's.
        sp_scale: exponent of SP-QA's weight xi = min(exp(sp_scale * L_sp), 1e9).
    """

    eps: float
    alpha: float
    steps: int
    suite: str = "strict"
    sp_scale: float = 4e4


@dataclass(frozen=True)
class TrainingThreat:
    """The adversary inside adversarial training.

    Attributes:
        eps: radius in [0, 1] pixel space.
        eta: PGD steps.
        alpha: step; None derives it from eta so that eta steps can cross the ball, about
            1.25 * eps / eta in whole 1/255: 12/255 at eta = 8 and 3/255 at eta = 32 for 77/255.
        ics: weight lambda of HM's Intra-Class Structure loss.
    """

    eps: float
    eta: int
    alpha: float | None = None
    ics: float = 0.5

    def step(self, eps: float, eta: int) -> float:
        """The step for a defense with this ``eps`` and ``eta``; eta = 1 is FGSM (a step of eps)."""
        if eta == 1:
            return eps
        if self.alpha is not None:
            return self.alpha
        return max(1, round(1.25 * 255 * eps / eta)) / 255
