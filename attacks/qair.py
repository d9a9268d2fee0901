"""QAIR: the items that a query returned are driven from its list, by a user who sees lists alone.

With w_r the relevance of place r = 1 ... n of a list, and r'_c the place of item c afterwards,

    L = sum_c w_{r_c} w_{r'_c},    w_r ~ 2^(n + 1 - r) - 1 (n <= 16), n + 1 - r (longer), sum w = 1

over the n items c that the clean query returned; behind the end of the list w is 0. At L = 0 none
of them is left, and the query is broken (Li et al., CVPR 2021). Reported is L in percent of its
value for the clean list.

The authors' code is not public; the weights are those of ARRA's code (Li et al., MM 2022, class
``RL``), which compares with it. The search is NES (by=nes) or the Square Attack (by=square). The
paper's stolen surrogate, whose gradients help the search, is not here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from dmlbench.attacks.base import ATTACKS, Column
from dmlbench.attacks.engine.black_box import BlackBox
from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.attacks.engine.nes import NES
from dmlbench.attacks.engine.square import Square
from dmlbench.attacks.nes import MOMENTUM
from dmlbench.attacks.returned_list import ListAttack, ListGoal, passes
from dmlbench.attacks.square import SHARE
from dmlbench.common.lazy import torch
from dmlbench.core.papers import Paper
from dmlbench.core.protocol import Threat
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter

LI = Paper(
    key="li2021qair",
    title="QAIR: Practical Query-efficient Black-Box Attacks for Image Retrieval",
    authors="Li, Xiaodan and Li, Jinfeng and Chen, Yuefeng and Ye, Shaokai and He, Yuan and "
    "Wang, Shuhui and Su, Hang and Xue, Hui",
    venue="CVPR",
    year=2021,
    url="https://arxiv.org/abs/2103.02927",
)
SHORT = 16  # places of a list up to which their weights double
SAMPLES, SIGMA = 10, 4 / 255  # of NES, as in the attack nes
OVERLAP = (
    "Overlap of the first n items with those of the clean query, weighted by place, in percent: "
    "100 is the clean list, 0 has none of its items."
)


def weights(n: int) -> torch.Tensor:
    """(n + 1,) float64 relevance of the places of a list of n, and 0 for what is behind it."""
    place = torch.arange(n, -1, -1, dtype=torch.float64)
    weight = 2**place - 1 if n <= SHORT else place
    return weight / weight.sum()


@dataclass(frozen=True)
class OverlapGoal(ListGoal):
    """The overlap with the clean list, whose items are in their order."""

    def score(self, places: torch.Tensor) -> torch.Tensor:
        """In percent of the clean list's."""
        w = weights(self.n).to(places.device)
        return 100 * (w[places] * w[:-1]).sum(1) / w.square().sum()

    def done(self, score: torch.Tensor) -> torch.Tensor:
        """No item is left."""
        return score == 0

    def loss(self, score: torch.Tensor) -> torch.Tensor:
        """The overlap."""
        return score


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class QAIR(ListAttack):
    """QAIR without a surrogate."""

    card = Card("qair", "drive the items that a query returned from its list, seen alone", LI)
    columns = (Column("QAIR", "%", "higher", OVERLAP), passes("QAIR", "no item was left"))
    auto = "by nes alpha=the step of PGD on the data set, in every suite"

    by: Literal["nes", "square"] = parameter(
        "nes", "the search: along estimated gradients, or by random squares"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by == "square" and self.alpha is not None:
            raise ValueError("alpha is not for by=square: every change is of the size 2 eps")

    def resolve(self, threat: Threat) -> Self:
        """Fill in the size of a step of NES too."""
        resolved = super().resolve(threat)
        if self.by == "square":
            return resolved
        return replace(resolved, alpha=self.alpha or threat.alpha)

    def search(self, active_set: bool = True, draws: int = 1) -> BlackBox[Any]:
        """The search."""
        eps = self.filled(self.eps)
        if self.by == "square":
            return Square(eps, self.budget, SHARE, bits=self.bits)
        alpha = self.filled(self.alpha)
        return NES(eps, self.budget, alpha, SAMPLES, SIGMA, MOMENTUM, bits=self.bits)

    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> OverlapGoal:
        """Away from the first n items of the clean query."""
        lists = self.seen_lists(gallery)
        items = lists.first(gallery.queries[index], index, self.n)
        return OverlapGoal("QAIR", lists, self.n, self.budget, seed, index, items)
