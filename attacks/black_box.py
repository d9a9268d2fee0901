"""The bases of attacks that take no gradient, and count what they show to the model.

Of attacks on the top-1 ``NAME`` is R@1 after the attack. ``NAME:Q`` is how long each query holds
out: the forward passes until its top-1 was wrong, 0 where the clean top-1 is, the budget where
it never was. So the share of queries whose number is above n is R@1 after n passes, for every n
below the budget.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from dmlbench.attacks.base import Attack, Column, RowWise
from dmlbench.attacks.engine.black_box import BlackBox, Breakable, Counted
from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.attacks.engine.optimizer import Perturbed, Search
from dmlbench.attacks.top1 import HELP, TopOneAttack, TopOneGoal
from dmlbench.common.lazy import torch
from dmlbench.core.protocol import Threat
from dmlbench.core.spec import parameter

BUDGET = 1000


def columns(name: str) -> tuple[Column, ...]:
    """R@1, and the passes that a query withstands."""
    withstood = Column(
        f"{name}:Q",
        "",
        "higher",
        "Forward passes until the top-1 of a query was wrong: 0 where the clean top-1 is, the "
        "whole budget where it never was. At a median below the budget, R@1 has fallen to half.",
        (0, float("inf")),
        median=f"{name}:q50",
        curve="forward passes",
    )
    return Column(name, "%", "higher", HELP), withstood


@dataclass(frozen=True)
class WithinBudget(RowWise):
    """A loss on the top-1, with R@1 and the passes until it is lost as its outcome."""

    loss: TopOneGoal
    budget: int

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of the loss."""
        return self.loss.value_and_grad(e, step)

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        """R@1, and the passes if nothing but ``e`` is known: the budget where R@1 is 100, else 0.

        The search has counted them (``TopOneBlackBox.read``).
        """
        right = self.loss.first(e)
        return {self.loss.column: right, f"{self.loss.column}:Q": right / 100 * self.budget}


@dataclass(frozen=True, kw_only=True)
class BlackBoxAttack(Attack):
    """An attack by forward passes alone."""

    held_against_noise = False  # it does not claim to be stronger than noise

    budget: int = parameter(
        BUDGET, "forward passes that a query may take, each with one image", at_least=1
    )

    norm: Literal["linf"] = parameter(
        "linf", "what eps bounds: the change of every pixel; a black box knows no other", late=True
    )

    def __post_init__(self) -> None:
        for key, value in (("steps", self.steps), ("restarts", self.restarts or None)):
            if value is not None:
                raise ValueError(f"{key} is not for a black box: give it a larger budget")
        if self.optimizer is not None:
            raise ValueError("optimizer is not for a black box: it takes no gradient")

    def resolve(self, threat: Threat) -> Self:
        """Fill in the ball and the suite; there are no steps."""
        eps = threat.eps if self.eps is None else self.eps
        return replace(self, eps=eps, suite=self.suite or threat.suite)

    @property
    def most_passes(self) -> int:
        """No gradient is taken."""
        return 0

    @property
    def most_forward_passes(self) -> int:
        """The budget."""
        return self.budget

    @abc.abstractmethod
    def search(self, active_set: bool = True, draws: int = 1) -> BlackBox[Any]:
        """The search of the ball; the attack must be resolved. Queries that are broken leave.

        Of a randomised network each pass shows one draw; its outcome is the mean over draws.
        """


@dataclass(frozen=True, kw_only=True)
class TopOneBlackBox(BlackBoxAttack, TopOneAttack):
    """An attack on the top-1 by forward passes alone."""

    def seen(self, goal: TopOneGoal) -> TopOneGoal:
        """The loss that the model's answers tell the attacker."""
        return goal

    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> WithinBudget:  # type: ignore[override]
        """The loss that is seen, and what the budget adds to the outcomes."""
        return WithinBudget(self.seen(super().goal(gallery, index, seed)), self.budget)

    def perturb(
        self,
        search: Search,
        embed: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        goal: WithinBudget,
        start: torch.Tensor | None,
    ) -> Counted:
        """Search for the queries whose clean top-1 is right."""
        e = goal.loss.gallery.queries[goal.loss.index]
        rows = (goal.loss.first(e) > 0).nonzero()[:, 0]
        return search_rows(search, embed, images, goal.loss, rows, e)

    def read(
        self, goal: WithinBudget, perturbed: Perturbed, after: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """R@1, and the passes until it was lost."""
        assert isinstance(perturbed, Counted)
        right, until = goal.loss.first(after), perturbed.until.double()
        held = (right > 0) | (until < 0)
        passes = torch.where(held, float(self.budget), until).masked_fill(right.isnan(), torch.nan)
        return {goal.loss.column: right, f"{goal.loss.column}:Q": passes}


def search_rows(
    search: Search,
    embed: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    goal: Breakable,
    rows: torch.Tensor,
    e: torch.Tensor,
) -> Counted:
    """Search for the queries at ``rows`` (b,); the others are broken, and keep their image.

    ``e`` (B, D) are the clean embeddings, which are known: so this takes no pass.
    """
    found = search.run(embed, images[rows], goal.take(rows))
    assert isinstance(found, Counted)
    return replace(
        found,
        images=images.index_copy(0, rows, found.images),
        last_embeddings=e.index_copy(0, rows, found.last_embeddings) if len(rows) else e,
        flat_start=torch.zeros_like(goal.index, dtype=torch.bool),
        until=torch.zeros_like(goal.index).index_copy(0, rows, found.until),
    )
