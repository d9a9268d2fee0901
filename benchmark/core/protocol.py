"""The numbers of a protocol: training hyper-parameters, and the bounds of the adversary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dmlbench.core.registry import Component
from dmlbench.core.spec import parameter

PRECISIONS = ("fp32", "tf32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Recipe(Component):
    """The training hyper-parameters that do not belong to the defense.

    The optimizer is Adam. A batch is a list of pairs: two images of the same class each (SPC-2).
    """

    epochs: int = parameter(8, "passes over the train split", at_least=1)
    pairs: int = parameter(128, "pairs of images of the same class in a batch", at_least=2)
    lr: float = parameter(1e-3, "Adam's learning rate", above=0, at_most=1e30)
    weight_decay: float = parameter(1e-7, "Adam's L2 penalty", at_least=0)
    precision: str = parameter("fp32", "number format inside the network", choices=PRECISIONS)


def recipe_changes(values: Mapping[str, Any], usual: Recipe) -> str:
    """List the values of a recipe that differ from ``usual``, e.g. ``epochs=2,lr=0.01``."""
    return ",".join(
        f"{name}={_exact(value) if isinstance(value, float) else value}"
        for name, value in values.items()
        if value != getattr(usual, name, None)
    )


def _exact(value: float) -> str:
    """A number in few digits, in all of them where few are another number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


OPTIMIZER_OF = {"strict": "pgd", "ers": "pgd", "auto": "apgd"}
SUITES = tuple(OPTIMIZER_OF)
AUTO_STEPS = 100  # of an attack of the suite auto, whatever the data set
# the attacks of the ten columns of ERS; es gives two of them
ERS_ATTACKS = ("ca+", "ca-", "qa+", "qa-", "tma", "es", "ltm", "gtm", "gtt")
SUITE_ATTACKS = {
    "strict": ERS_ATTACKS,
    "ers": ERS_ATTACKS,
    "auto": (*ERS_ATTACKS, "top1", "radius"),
}
RECALL_ATTACKS = {  # of each suite those that Robust R@1 is the worst case of
    "strict": ("es", "ltm", "gtm"),
    "ers": ("es", "ltm", "gtm"),
    "auto": ("es", "ltm", "gtm", "top1"),
}


@dataclass(frozen=True)
class Threat:
    """The adversary of an evaluation: how far and in how many steps it may change an image.

    Attributes:
        eps: radius of the L-infinity ball, in [0, 1] pixel space.
        alpha: size of one step along the sign of the gradient, in [0, 1] pixel space.
        steps: number of steps.
        suite: ``strict`` follows the definitions in the papers, ``ers`` those in their published
            code, ``auto`` those in the papers, with a strong optimizer.
        sp_scale: factor in the exponent of SP-QA's weight xi = min(exp(sp_scale * L_sp), 1e9).
    """

    eps: float
    alpha: float
    steps: int
    suite: str = "strict"
    sp_scale: float = 4e4


@dataclass(frozen=True)
class TrainingThreat:
    """The adversary of adversarial training: it changes the training images.

    Attributes:
        eps: radius of the L-infinity ball, in [0, 1] pixel space.
        eta: number of PGD steps.
        alpha: size of one step. None: about 1.25 * eps / eta, rounded to a multiple of 1/255, so
            that eta steps can cross the ball. For eps = 77/255 this is 12/255 at eta = 8 and
            3/255 at eta = 32.
        ics: weight (lambda) of the Intra-Class Structure loss in HM.
    """

    eps: float
    eta: int
    alpha: float | None = None
    ics: float = 0.5

    def step(self, eps: float, eta: int) -> float:
        """The step size for this ``eps`` and ``eta``. With eta = 1 it is ``eps`` itself (FGSM)."""
        if eta == 1:
            return eps
        if self.alpha is not None:
            return self.alpha
        return max(1, round(1.25 * 255 * eps / eta)) / 255
