"""ES and TMA: move a query's embedding away from itself, or onto a target.

    ES:   L = -d(f(q~), f(q))                 (AdvRank and RobRank, embedding shift)
    TMA:  L = 1 - cos(f(q~), t)               (Tolias et al., ICCV 2019, global descriptor)

At the start f(q~) = f(q): distance and gradient of ES are zero there. So in the first step 1e-7 is
added to f(q). Under the metric E it is 1e-7 times the length of f(q), where that is above 1: a sum
in float32 loses what is much smaller than its terms.

``ers``, as the published code: ES:D is measured on the embedding before the last step, and the
first step goes the other way under the metrics N and E, because torch's pairwise_distance adds
1e-6 to the difference. With ``optimizer=apgd``, which returns its best image, ES:D is that of this
image.
"""

from __future__ import annotations

from dataclasses import dataclass

from dmlbench.attacks.base import ATTACKS, Attack, Column, RowWise
from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.attacks.engine.optimizer import Perturbed
from dmlbench.common.lazy import torch
from dmlbench.core.papers import ADVRANK, Paper
from dmlbench.core.registry import Card
from dmlbench.metrics.distance import BOUNDS, SHORTEST, Metric, rowwise, rowwise_gradient

TMA = Paper(
    key="tolias2019targeted",
    title="Targeted Mismatch Adversarial Attack: Query with a Flower to Retrieve the Tower",
    authors="Tolias, Giorgos and Radenovic, Filip and Chum, Ondrej",
    venue="ICCV",
    year=2019,
    url="https://arxiv.org/abs/1908.09163",
)

FIRST_OFFSET, PUBLISHED_FIRST_OFFSET = 1e-7, 1e-7 - 1e-6  # added to f(q) in the first step
MOVED = "Distance that the embedding is moved; at most 2 under metric N."
REACHED = "Cosine similarity with the target that is reached: 1 is a full success of the attack."


def beside(origin: torch.Tensor, offset: float, metric: Metric) -> torch.Tensor:
    """``origin`` (..., D) plus ``offset``, under E times the length of the row if that is above 1.

    No number of a row is so large that ``offset`` is lost in it.
    """
    if metric != "E":
        return origin + offset
    length: torch.Tensor = torch.linalg.vector_norm(origin, dim=-1, keepdim=True)
    return origin + offset * length.clamp(min=1)


@dataclass(frozen=True)
class ShiftGoal(RowWise):
    """ES: away from ``origin`` (B, D), the clean embeddings of the queries at ``index``.

    ``offset`` is added to ``origin`` in the first step.
    """

    offset: float
    gallery: Gallery
    index: torch.Tensor
    origin: torch.Tensor

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (B,) and gradients (B, D)."""
        metric = self.gallery.metric
        origin = beside(self.origin, self.offset, metric) if step == 0 else self.origin
        return -rowwise(e, origin, metric), -rowwise_gradient(e, origin, metric)

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        """Distance from the clean embedding, and R@1."""
        shift = rowwise(e, self.origin, self.gallery.metric)
        return {"ES:D": shift.double(), "ES:R": self.gallery.recall_at_1(e, self.index)}


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class EmbeddingShift(Attack):
    """ES; ES:D is the distance moved, ES:R the R@1 of the moved query."""

    card = Card("es", "move a query's embedding as far as it goes from itself", ADVRANK)
    columns = (
        Column("ES:R", "%", "higher", "R@1 of the moved query, in percent.", pursued=False),
        Column("ES:D", "", "lower", MOVED, BOUNDS),
    )

    def version_under(self, metric: Metric) -> int:
        """``version``, plus 1 under E, and in ``ers`` under C.

        In the first step of the earlier version, what is added to f(q) was lost to rounding under E
        where f(q) is long. Under C it was what the published code adds under N.
        """
        return self.version + (metric == "E" or (metric == "C" and not self.strict))

    @property
    def version(self) -> int:
        """The card's version, plus 1 in ``ers`` by APGD.

        ES:D of the earlier version was not that of the image that APGD returns.
        """
        return super().version + (not self.strict and self.optimizer == "apgd")

    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> ShiftGoal:
        """No target but the query itself."""
        published = not self.strict and gallery.metric != "C"
        offset = PUBLISHED_FIRST_OFFSET if published else FIRST_OFFSET
        return ShiftGoal(offset, gallery, index, gallery.queries[index])

    def read(
        self, goal: ShiftGoal, perturbed: Perturbed, after: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """As ``outcome``; in ``ers`` ES:D is that of the embedding before the last step of PGD."""
        outcomes = goal.outcome(after)
        if not self.strict and self.optimizer != "apgd":
            outcomes["ES:D"] = goal.outcome(perturbed.last_embeddings)["ES:D"]
        return outcomes


@dataclass(frozen=True)
class MismatchGoal(RowWise):
    """TMA: towards ``target`` (B, D) by cosine similarity."""

    target: torch.Tensor

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (B,) and gradients (B, D)."""
        norm = torch.linalg.vector_norm(e, dim=1, keepdim=True).clamp(min=SHORTEST)
        unit, target = e / norm, torch.nn.functional.normalize(self.target, dim=1)
        cosine = (unit * target).sum(1, keepdim=True)
        return 1 - cosine[:, 0], (cosine * unit - target) / norm

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cosine similarity to the target."""
        cosine = torch.nn.functional.cosine_similarity(e, self.target, dim=1)
        return {"TMA": cosine.double()}


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class TargetedMismatch(Attack):
    """TMA on the global descriptor, which is the whole embedding."""

    card = Card("tma", "move a query's embedding onto a random gallery embedding", TMA)
    columns = (Column("TMA", "", "lower", REACHED, (-1, 1)),)

    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> MismatchGoal:
        """A target drawn uniformly from the items that the query sees."""
        chosen = gallery.draw(index, 1, seed, self.card.name)
        return MismatchGoal(gallery.embeddings[chosen[:, 0]])
