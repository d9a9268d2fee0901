"""The base of attacks that see the first n items of a returned list, and no distance.

``NAME`` says how near the list is to the one that the attacker wants, ``NAME:Q`` after how many
forward passes it was there: the whole budget where it never was. Then the query is broken, as the
engine says, and leaves the search.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass

from dmlbench.attacks.base import Column, RowWise
from dmlbench.attacks.black_box import BlackBoxAttack, search_rows
from dmlbench.attacks.engine.black_box import Counted
from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.attacks.engine.optimizer import Perturbed, Search
from dmlbench.attacks.engine.ranked_list import RankedLists
from dmlbench.common.errors import CellError
from dmlbench.common.lazy import torch
from dmlbench.core.spec import parameter


def passes(name: str, what: str) -> Column:
    """The column ``name:Q``, the passes until ``what``, e.g. "no item was left"."""
    said = f"Forward passes until {what}: the whole budget where that never was."
    median = f"{name}:q50"
    return Column(
        f"{name}:Q", "", "higher", said, (0, float("inf")), median=median, curve="forward passes"
    )


@dataclass(frozen=True)
class ListGoal(RowWise, abc.ABC):
    """A loss on the places that some items have in the returned list.

    Attributes:
        column: heading of the outcome.
        lists: what is searched.
        n: the length of the list that is seen.
        budget: of the search.
        seed: of the cell.
        index: (B,) the numbers of the queries.
        items: (B, k) positions of the items.
    """

    column: str
    lists: RankedLists
    n: int
    budget: int
    seed: int
    index: torch.Tensor
    items: torch.Tensor

    @abc.abstractmethod
    def score(self, places: torch.Tensor) -> torch.Tensor:
        """(B,) float64 outcome of places (B, k) from 0, which are n behind the end of the list."""

    @abc.abstractmethod
    def done(self, score: torch.Tensor) -> torch.Tensor:
        """(B,) true where the attacker has the list that is wanted."""

    @abc.abstractmethod
    def loss(self, score: torch.Tensor) -> torch.Tensor:
        """(B,) what is minimised."""

    def scored(self, e: torch.Tensor) -> torch.Tensor:
        """(B,) the outcome of embeddings (B, D)."""
        returned = self.lists.first(e, self.index, self.n)
        there = returned[:, None, :] == self.items[:, :, None]
        places = there.to(torch.uint8).argmax(2).masked_fill(~there.any(2), self.n)
        return self.score(places)

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (B,) float64; the gradients (B, D) are zero, as the losses are steps."""
        score = self.scored(e)
        lowest = torch.finfo(score.dtype).min
        return self.loss(score).masked_fill(self.done(score), lowest), torch.zeros_like(e)

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        """The score, and 0 passes where the attacker has what is wanted."""
        return self.outcomes(self.scored(e), torch.zeros_like(self.index))

    def outcomes(self, score: torch.Tensor, until: torch.Tensor) -> dict[str, torch.Tensor]:
        """The columns; ``until`` (B,) are the passes of those queries that are done."""
        never = ~self.done(score)
        withstood = until.double().masked_fill(never | (until < 0), float(self.budget))
        return {self.column: score, f"{self.column}:Q": withstood}


@dataclass(frozen=True, kw_only=True)
class ListAttack(BlackBoxAttack):
    """An attack on the first ``n`` items of a list."""

    n: int = parameter(10, "items of a returned list that the attacker sees", at_least=1)

    @abc.abstractmethod
    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> ListGoal:
        """The list that is wanted of each query."""

    def seen_lists(self, gallery: Gallery) -> RankedLists:
        """The lists of a gallery.

        Raises:
            CellError: it is shorter than what the attacker sees.
        """
        if self.n > gallery.least_seen:
            raise CellError(
                f"{self.card.name} sees the first {self.n} items, and the gallery has "
                f"{gallery.least_seen}: give it a smaller n"
            )
        return gallery.shared("ranked lists", lambda: RankedLists.of(gallery))

    def perturb(
        self,
        search: Search,
        embed: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        goal: ListGoal,
        start: torch.Tensor | None,
    ) -> Counted:
        """Search for the queries that do not have the wanted list from the start."""
        e = goal.lists.gallery.queries[goal.index]
        rows = (~goal.done(goal.scored(e))).nonzero()[:, 0]
        return search_rows(search, embed, images, goal, rows, e)

    def read(
        self, goal: ListGoal, perturbed: Perturbed, after: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The score, and the passes until the list was the wanted one."""
        assert isinstance(perturbed, Counted)
        return goal.outcomes(goal.scored(after), perturbed.until)
