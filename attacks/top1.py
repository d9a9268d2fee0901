"""Attacks on the top-1: a query fails where an item of another class is closer than its own.

With d_c the distance from the query q~ to the nearest item that it sees of class c, y its own class
and t the nearest other class, all losses are minimised:

    margin:  M = d_t - d_y
    dlr:     (d_t - d_y) / (d_3 - d_1), d_1 and d_3 the least and third least distance over classes
             (Croce and Hein, ICML 2020, with -d_c in the place of the logits)
    knn:     mean distance to the 10 nearest of the other class where it is least, minus that to
             the 10 nearest of y
    shift:   -d(f(q~), f(q)), the loss of ES

A query is broken as soon as M < 0. It then leaves the search with the image that broke it: its
loss counts as the lowest there is, its gradient as zero. Only an image that is meant for another
model (``dmlbench.attacks.transfer``) is searched on, for the lowest loss.

``of=item`` needs no labels: the item that is the query's top-1 on the clean image has to stay it.
It is a class of its own then, and so is every other item. A distractor is always one, and where the
answers to a query are listed, every item is, and y the nearest answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

from dmlbench.attacks.base import ATTACKS, Attack, Column, RowWise
from dmlbench.attacks.embedding_shift import FIRST_OFFSET, beside
from dmlbench.attacks.engine.classes import Classes, Nearest
from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.attacks.engine.query_loss import QueryLoss
from dmlbench.attacks.engine.ranked_list import RankedLists
from dmlbench.common.lazy import torch
from dmlbench.core.papers import ADVRANK, Paper
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.metrics.distance import Metric, rowwise, rowwise_gradient

CROCE = Paper(
    key="croce2020reliable",
    title="Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse "
    "Parameter-free Attacks",
    authors="Croce, Francesco and Hein, Matthias",
    venue="ICML",
    year=2020,
    url="https://arxiv.org/abs/2003.01690",
)

HELP = (
    "R@1 after the attack, in percent; with of=item the share of queries whose top-1 item stays "
    "the top-1. Clean queries that are wrong count as broken."
)
NEIGHBOURS = 10  # items of a class that knn looks at
HALF_A_TIE = 0.5  # items ahead of the top-1 item, from which on it is not the first


class Slope(NamedTuple):
    """One value per query, (B,), and its gradient in the embedding, (B, D)."""

    value: torch.Tensor
    gradient: torch.Tensor

    def __sub__(self, other: Slope) -> Slope:
        return Slope(self.value - other.value, self.gradient - other.gradient)

    def __truediv__(self, other: Slope) -> Slope:
        ratio = self.value / other.value
        gradient = self.gradient - ratio[:, None] * other.gradient
        return Slope(ratio, gradient / other.value[:, None])


@dataclass(frozen=True)
class TopOneGoal(RowWise):
    """The loss ``name`` on a batch of queries.

    Attributes:
        name: margin, dlr, knn or shift.
        column: heading of the outcome.
        gallery: what is searched.
        classes: the gallery by class, or by item.
        lists: the same as ranked lists.
        seed: of the cell, for random starts.
        index: (B,) the numbers of the queries.
        own: (B, p) the places of their classes in ``classes``.
        item: (B,) the items that have to stay the top-1; None: any of the query's class will do.
        beyond: true if a query that is broken is searched on.
    """

    name: str
    column: str
    gallery: Gallery
    classes: Classes
    lists: RankedLists
    seed: int
    index: torch.Tensor
    own: torch.Tensor
    item: torch.Tensor | None
    beyond: bool

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (B,) and gradients (B, D); zero for a query without another item to compare."""
        k = NEIGHBOURS if self.name == "knn" else 1
        near = self.classes.nearest(e, self.index, self.own, k)
        own, other = self.distance(e, near.own[:, :1]), self.distance(e, near.closest[:, None])
        margin = other - own
        impossible = (near.own[:, 0] < 0) | (near.closest < 0)
        loss = LOSSES[self.name](self, e, near, margin, step)
        broken = (margin.value < 0) & ~impossible & (not self.beyond)
        value = loss.value.masked_fill(broken, torch.finfo(e.dtype).min)
        return (
            value.masked_fill(impossible, 0),
            loss.gradient.masked_fill((broken | impossible)[:, None], 0),
        )

    def first(self, e: torch.Tensor) -> torch.Tensor:
        """(B,) 100 where the top-1 of ``e`` is right, else 0; NaN where there is none."""
        return TopOneGoal.outcome(self, e)[self.column]

    def ranked(self) -> RankGoal:
        """The same goal as ranked lists show it."""
        return RankGoal(**vars(self))

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        """R@1; of an item, 100 where it is still the top-1 (a tie is a loss), else 0."""
        if self.item is None:
            return {self.column: self.gallery.recall_at_1(e, self.index)}
        ranked = QueryLoss(False, True, self.gallery, self.index, self.item[:, None])
        ahead = ranked.items_ahead(e)[:, 0]
        return {self.column: 100 * (ahead < HALF_A_TIE).double()}

    def distance(self, e: torch.Tensor, items: torch.Tensor) -> Slope:
        """Mean distance to ``items`` (B, k) as far as they exist (-1: they do not)."""
        there = (items >= 0).to(e.dtype)
        weight = there / there.sum(1, keepdim=True).clamp(min=1)
        x = self.gallery.embeddings[items.clamp(min=0)]
        metric = self.gallery.metric
        value = (rowwise(e[:, None], x, metric) * weight).sum(1)
        return Slope(value, (rowwise_gradient(e[:, None], x, metric) * weight[..., None]).sum(1))


@dataclass(frozen=True)
class RankGoal(TopOneGoal):
    """The same, seen through ranked lists alone; it has no gradient.

    The loss is the number of items of the own class ahead of the first item of another one, and
    the mean of that number over the first ten such items, which tells equals apart.
    """

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (B,) float64; the gradients (B, D) are zero, as the losses are steps."""
        item, positives = self.item, self.gallery.relevance.positives
        answers = positives.of(self.index) if item is None else item[:, None]
        ahead = self.lists.own_ahead(e, self.index, answers)
        loss = ahead[:, 0] + ahead.double().mean(1) / (len(self.gallery) + 1)
        loss = loss.masked_fill(ahead[:, 0] == 0, torch.finfo(loss.dtype).min)
        return loss.masked_fill(ahead[:, 0] < 0, 0), torch.zeros_like(e)


Loss = Callable[[TopOneGoal, "torch.Tensor", Nearest, Slope, int], Slope]


def margin_loss(
    goal: TopOneGoal, e: torch.Tensor, near: Nearest, margin: Slope, step: int
) -> Slope:
    """M."""
    return margin


def dlr_loss(goal: TopOneGoal, e: torch.Tensor, near: Nearest, margin: Slope, step: int) -> Slope:
    """The ratio; M where there is no third class.

    As long as a query is not broken its own class is the nearest, so d_1 = d_y, and d_3 is that
    of the second nearest other class.
    """
    third = near.rivals[:, 1]
    spread = goal.distance(e, third) - goal.distance(e, near.own)
    whole = margin.value.new_ones(len(e))
    flat = (third[:, 0] < 0) | (spread.value <= 0)
    value = torch.where(flat, whole, spread.value)
    gradient = spread.gradient.masked_fill(flat[:, None], 0)
    return margin / Slope(value, gradient)


def knn_loss(goal: TopOneGoal, e: torch.Tensor, near: Nearest, margin: Slope, step: int) -> Slope:
    """The difference of the two means."""
    return goal.distance(e, near.rivals[:, 0]) - goal.distance(e, near.own)


def shift_loss(goal: TopOneGoal, e: torch.Tensor, near: Nearest, margin: Slope, step: int) -> Slope:
    """Minus the distance from the clean embedding, which is offset in the first step as in ES."""
    metric, origin = goal.gallery.metric, goal.gallery.queries[goal.index]
    if step == 0:
        origin = beside(origin, FIRST_OFFSET, metric)
    return Slope(-rowwise(e, origin, metric), -rowwise_gradient(e, origin, metric))


LOSSES: dict[str, Loss] = {
    "margin": margin_loss,
    "dlr": dlr_loss,
    "knn": knn_loss,
    "shift": shift_loss,
}


@dataclass(frozen=True, kw_only=True)
class TopOneAttack(Attack):
    """The base of the attacks on the top-1."""

    loss: ClassVar[str]

    of: Literal["class", "item"] = parameter(
        "class", "what has to stay the top-1: an item of the query's class, or its top-1 item"
    )
    beyond: bool = field(default=False, repr=False)  # TopOneGoal's: set by transfer

    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> TopOneGoal:
        """The loss on the queries' classes, or on their top-1 items."""
        if self.of == "class":
            item, labels = None, gallery.classes
        else:
            item = (gallery.under_test or gallery).nearest(index, 1)[:, 0]
            labels = torch.arange(len(gallery), device=index.device)
        classes = gallery.shared(f"classes by {self.of}", lambda: Classes(gallery, labels))
        lists = gallery.shared("ranked lists", lambda: RankedLists.of(gallery))
        if item is None:
            answers = gallery.relevance.positives
            places = gallery.shared("places of answers", lambda: classes.places(answers.table))
            own = places[answers.row[index]]
        else:
            own = classes.place_of_item[item][:, None]
        column = self.columns[0].name
        return TopOneGoal(
            self.loss, column, gallery, classes, lists, seed, index, own, item, self.beyond
        )


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class Margin(TopOneAttack):
    """The margin itself."""

    card = Card("margin", "bring the nearest other class closer than the query's own", CROCE)
    columns = (Column("Margin", "%", "higher", HELP),)
    loss = "margin"


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class DifferenceOfRatios(TopOneAttack):
    """The margin over the spread of the nearest three classes, which no rescaling changes."""

    card = Card("dlr", "the margin over the spread of the three nearest classes", CROCE)
    columns = (Column("DLR", "%", "higher", HELP),)
    loss = "dlr"


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class NearestNeighbours(TopOneAttack):
    """The margin of means over ten neighbours."""

    card = Card("knn", "bring ten items of another class closer than ten of the own", CROCE)
    columns = (Column("KNN", "%", "higher", HELP),)
    loss = "knn"


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class Shift(TopOneAttack):
    """ES until the top-1 is wrong."""

    card = Card("shift", "move a query's embedding away from itself until its top-1 fails", ADVRANK)
    columns = (Column("Shift", "%", "higher", HELP),)
    loss = "shift"

    def version_under(self, metric: Metric) -> int:
        """The card's version, plus 1 under E.

        In the first step of the earlier version, what is added to a long embedding was lost to
        rounding, as in ES.
        """
        return self.version + (metric == "E")
