"""The base class of attacks: it validates, perturbs within the threat model, and verifies.

A subclass writes its mathematics only. Its ``goal`` chooses the targets of a batch of queries and
returns an objective (a loss for each query) that can also compute each query's outcome.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar, cast, final

from dmlbench.attacks.engine.apgd import APGD
from dmlbench.attacks.engine.ball import BALLS, GREY, GRID_TOLERANCE
from dmlbench.attacks.engine.column import Column
from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.attacks.engine.objective import AutogradLoss, RowWise
from dmlbench.attacks.engine.optimizer import Optimizer, Perturbed, Search
from dmlbench.attacks.engine.outcomes import (
    Attacked,
    Goal,
    Outcomes,
    check_outcomes,
    mean_outcomes,
    worse,
)
from dmlbench.attacks.engine.pgd import PGD
from dmlbench.common.errors import CellError, UserError
from dmlbench.common.hashing import derived_seed
from dmlbench.common.lazy import np, torch
from dmlbench.core import spec
from dmlbench.core.protocol import AUTO_STEPS, OPTIMIZER_OF, SUITES
from dmlbench.core.registry import Component, Registry
from dmlbench.core.spec import parameter
from dmlbench.metrics.names import CLEAN, ERS, EXTERNAL, WORST

if TYPE_CHECKING:
    from torch import nn

    from dmlbench.core.flags import Flag
    from dmlbench.core.protocol import Threat
    from dmlbench.metrics.distance import Metric

__all__ = [
    "ATTACKS",
    "Attack",
    "Attacked",
    "AutogradLoss",
    "Column",
    "Gallery",
    "Goal",
    "RowWise",
]

ATTACKS: Registry[Attack] = Registry("attack", "dmlbench.attacks", required=("columns", "goal"))

RESERVED = (*CLEAN, WORST, ERS, f"{EXTERNAL}:R@1")
"""Columns of the tables that no attack may have: benign metrics, scores, images from outside."""


ValueT = TypeVar("ValueT")
L2_STEP = 2.5  # of PGD in an L2 ball, times eps / steps
OPTIMIZERS: dict[str, type[PGD] | type[APGD]] = {"pgd": PGD, "apgd": APGD}


@dataclass(frozen=True, kw_only=True)
class Attack(Component, abc.ABC):
    """An attack in an L-infinity ball, or in an L2 ball (``norm``), along gradients.

    Attacks without gradients are of ``dmlbench.attacks.black_box``.

    A field that is None (``auto``) is filled in from the suite and the data set's card by
    ``resolve``; ``optimizer`` stays None where it is the suite's. ``perturbs`` says which part the
    perturbed image plays in the retrieval.
    """

    columns: ClassVar[tuple[Column, ...]]
    perturbs: ClassVar[Literal["query", "candidate"]] = "query"
    held_against_noise: ClassVar[bool] = True
    """In the suite auto its row is flagged if random noise of size eps does as well.

    False for an attack that follows no gradient, or need not be stronger than noise.
    """
    auto: ClassVar[str] = ""
    """Text for the user: values of ``auto`` that are other ones than in most attacks."""

    eps: float | None = parameter(
        None,
        "radius of the ball; auto: the data set's; of norm=l2 a length over all pixels, which has "
        "no default",
        at_least=0,
        at_most=1,
        pixels=True,
        unless="norm=l2",
    )
    alpha: float | None = parameter(
        None,
        "size of a step; auto: the data set's, or eps where steps=1 (FGSM); of APGD, whose first "
        "step it is, 2 eps; of PGD under norm=l2 2.5 eps / steps",
        above=0,
        at_most=1,
        pixels=True,
        unless="norm=l2",
    )
    steps: int | None = parameter(
        None, "steps of the optimizer; auto: the data set's, 100 in the suite auto", at_least=1
    )
    restarts: int = parameter(
        0,
        "random starts in the ball, of which each query's worst counts; 0: the clean image",
        at_least=0,
    )
    suite: str | None = parameter(
        None,
        "the papers' definitions (strict), the published code's (ers), or the papers' under a "
        "strong optimizer (auto)",
        choices=SUITES,
    )
    optimizer: str | None = parameter(
        None,
        "what minimises the loss: fixed sign steps (pgd), or steps that adapt to each query "
        "(apgd); auto: the suite's",
        choices=tuple(OPTIMIZERS),
        late=True,
    )
    bits: Literal[8, 32] = parameter(
        32,
        "8: search and outcome are on images rounded to 8 bits within the ball, as a file keeps "
        "them; 32: on images of floating-point pixels",
        late=True,
    )
    norm: Literal["linf", "l2"] = parameter(
        "linf",
        "what eps bounds: the change of every pixel (linf), or the Euclidean length of the change "
        "over all pixels (l2), with pixels in [0, 1]",
        late=True,
    )

    @classmethod
    def headings(cls) -> list[Column]:
        """The columns of tables that it fills."""
        return [heading for column in cls.columns for heading in column.headings]

    @classmethod
    def conflict(cls, others: Iterable[type[Component]]) -> str | None:
        """A column that is another attack's, or a benign metric's: a table has one of each name."""
        taken = dict.fromkeys(RESERVED, "a metric of the benchmark")
        for other in others:
            if issubclass(other, Attack) and other.card.name != cls.card.name:
                taken |= {c.name: f"the attack {other.card.name!r}" for c in other.headings()}
        for column in cls.headings():
            if column.name in taken:
                return (
                    f"its column {column.name!r} is that of {taken[column.name]}: tables would mix "
                    "the two, so give it another name"
                )
        return None

    @abc.abstractmethod
    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> Goal:
        """Targets and loss for the queries with the numbers ``index`` (B,).

        They may depend on ``seed`` and each query's own number only, not on the batch around it.
        """

    def most_rows(self, gallery: Gallery) -> int:
        """The largest batch of queries, for an attack that keeps much data for each query.

        By default all of them.
        """
        return len(gallery.queries)

    def read(self, goal: Any, perturbed: Perturbed, after: torch.Tensor) -> Outcomes:
        """Outcomes from ``after`` (B, D), the embeddings of the adversarial images."""
        outcomes: Outcomes = goal.outcome(after)
        return outcomes

    def flags(
        self, outcomes: Mapping[str, np.ndarray[Any, Any]], findings: Mapping[str, Any]
    ) -> list[Flag]:
        """Reasons not to trust the numbers of a model, from what the attack has found; or none.

        Args:
            outcomes: column -> (N,) value of each test image, NaN where it was not attacked;
                ``"CA+ clean"`` is that of the clean images.
            findings: what its cell stores beside its numbers; of what ``observe`` gives, the means.
        """
        return []

    def observe(self, goal: Any, perturbed: Perturbed) -> Outcomes:
        """Name -> (B,) more about each query, whose mean becomes a finding of the cell."""
        return {}

    def perturb(
        self,
        search: Search,
        embed: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        goal: Any,
        start: torch.Tensor | None,
    ) -> Perturbed:
        """Search the ball around ``images`` from ``start``, or from the images themselves."""
        return search.run(embed, images, goal, start)

    def goal_of_restart(self, goal: Any, restart: int) -> Any:
        """The goal of restart 0, 1, ...: by default the same in all.

        They differ in where they start. An attack that draws more random numbers than its start
        returns a goal with another seed.
        """
        return goal

    def resolve(self, threat: Threat) -> Self:
        """The attack with every ``auto`` field filled in from ``threat``.

        In an L2 ball the step is 2 eps of APGD (Croce and Hein, ICML 2020) and 2.5 eps / steps of
        PGD (the L2 runs of Madry's library ``robustness``).

        Raises:
            UserError: there is no radius: data sets have an L-infinity one only.
        """
        if self.norm == "l2" and self.eps is None:
            raise UserError(
                f"{self.card.name}: norm=l2 needs eps=..., a length over all pixels such as 1: the "
                "data set's radius is that of an L-infinity ball"
            )
        suite = self.suite or threat.suite
        steps = self.steps or (AUTO_STEPS if suite == "auto" else threat.steps)
        eps = threat.eps if self.eps is None else self.eps
        usual = OPTIMIZER_OF[suite]
        if (self.optimizer or usual) == "apgd":
            alpha = self.alpha or (2 * eps if self.norm == "l2" else min(2 * eps, 1))
        elif self.norm == "l2" and steps > 1:
            alpha = self.alpha or L2_STEP * eps / steps
        else:
            alpha = self.alpha or (eps if steps == 1 else threat.alpha)
        alpha = alpha or threat.alpha  # where eps is 0
        optimizer = None if self.optimizer == usual else self.optimizer
        return dataclasses.replace(
            self, eps=eps, alpha=alpha, steps=steps, suite=suite, optimizer=optimizer
        )

    @final
    def filled(self, value: ValueT | None) -> ValueT:
        """The value of a field that ``resolve`` fills in.

        Raises:
            ValueError: it is None: the attack is not resolved.
        """
        if value is None:
            raise ValueError(f"{self.card.name} has auto fields: call resolve(threat) before run")
        return value

    @final
    def in_suite(self, suite: str) -> Self:
        """The attack in that suite, unless it has a suite of its own."""
        return self if self.suite else dataclasses.replace(self, suite=suite)

    @property
    def version(self) -> int:
        """Version of the definition: the card's, or a later one for some values of its keys."""
        return self.card.version

    def version_under(self, metric: Metric) -> int:
        """``version``, or a later one if the definition was changed for this metric alone."""
        return self.version

    @property
    def facts(self) -> dict[str, Any]:
        """Parameter -> value (JSON types), or what decides its numbers in the place of a value."""
        return dict(spec.values(self))

    @property
    def most_passes(self) -> int:
        """Forward-backward passes that a query takes at most; steps must be resolved."""
        return (self.steps or 0) * max(1, self.restarts)

    @property
    def most_forward_passes(self) -> int:
        """Passes without a backward one that a query takes at most, where a search counts them."""
        return 0

    @property
    @final
    def strict(self) -> bool:
        """True for the papers' definitions, false for those of the published code."""
        return self.suite != "ers"

    @final
    def run(
        self,
        model: nn.Module,
        images: torch.Tensor,
        index: torch.Tensor,
        gallery: Gallery,
        *,
        seed: int,
        active_set: bool = True,
        draws: int = 1,
        on_pass: Callable[[int], None] = lambda rows: None,
    ) -> Attacked:
        """Attack a batch of test images.

        Args:
            model: an embedding model; it is in eval mode and frozen while it is attacked.
            images: (B, C, H, W) clean images in [0, 1] of what it perturbs.
            index: (B,) the numbers of the queries; of a candidate attack, of its candidates.
            gallery: clean embeddings of the items and the queries.
            seed: the cell's seed; together with ``index`` it decides the targets.
            active_set: samples whose gradient is zero leave the batch, which changes no result but
                that of a randomised network, whose next draws might have had one.
            draws: passes of a randomised network that gradients and outcomes are the means of
                (``--eot``). Its random numbers follow from the seed, the attack and the first query
                of the batch: another batch has others.
            on_pass: called before each pass with the number of images in it, to show progress.

        Raises:
            CellError: images outside [0, 1] or NaN, a model that returns the wrong shape or
                NaN, a gallery too small for the targets, a perturbation outside the ball, an
                outcome outside its column's bounds, with bits=8 images that 8 bits cannot hold.
        """
        from dmlbench.compute.embedding import embed, frozen
        from dmlbench.compute.model_checks import finite
        from dmlbench.compute.randomness import global_seeds

        spec.check(self)
        search = self.search(active_set, draws)
        if not bool(((images >= 0) & (images <= 1)).all()):
            raise CellError("images must be finite and in [0, 1]")
        if self.bits == 8 and not _has_8_bits(images):
            raise CellError("bits=8 is for clean images of 8 bits: every pixel k/255, k whole")
        if len(index) != len(images):
            raise CellError(f"{len(images)} images need as many indices, got {len(index)}")
        goal = self.goal(gallery, index, seed)

        def embedded(x: torch.Tensor) -> torch.Tensor:
            on_pass(len(x))
            # a randomised one not by ``embed``: it pads short batches, and padding would draw too
            e = embed(model, x) if draws == 1 else cast("torch.Tensor", model(x))
            return e if torch.is_grad_enabled() else finite(e)  # optimizers look at theirs

        drawn = derived_seed(seed, self.card.name, *index[:1].tolist())
        with frozen(model), global_seeds(drawn, images.device) if draws > 1 else nullcontext():
            return self._run(embedded, search, draws, images, goal, gallery, index, seed)

    def _run(
        self,
        embed: Callable[[torch.Tensor], torch.Tensor],
        search: Search,
        draws: int,
        images: torch.Tensor,
        goal: Any,
        gallery: Gallery,
        index: torch.Tensor,
        seed: int,
    ) -> Attacked:
        """All restarts of the attack on a batch, and the worst of each query."""
        found: Attacked | None = None
        for restart in range(max(1, self.restarts)):
            start = None
            if self.restarts:
                ball = BALLS[self.norm]
                start = ball.start(images, self.eps or 0, index, seed, restart)
            perturbed = self.perturb(
                search, embed, images, self.goal_of_restart(goal, restart), start
            )
            with torch.no_grad():
                outcomes = mean_outcomes(
                    draws,
                    lambda p=perturbed: self.read(goal, p, embed(p.images)),  # type: ignore[misc]
                )
                clean = mean_outcomes(
                    draws,
                    lambda: goal.outcome(
                        self.clean(gallery, index) if draws == 1 else embed(images)
                    ),
                )
            for found_of in (outcomes, clean):
                check_outcomes(self.card.name, self.columns, found_of, len(index), gallery.metric)
            one = Attacked(
                outcomes,
                clean,
                perturbed,
                self.observe(goal, perturbed),
                self._last(search, goal, perturbed),
            )
            found = one if found is None else self._worse(found, one)
        assert found is not None
        return found

    @final
    def clean(self, gallery: Gallery, index: torch.Tensor) -> torch.Tensor:
        """(B, D) the clean embeddings of what it perturbs."""
        if self.perturbs == "query":
            return gallery.queries[index]
        return gallery.embeddings[gallery.candidates[index]]

    def _last(self, search: Search, goal: Any, perturbed: Perturbed) -> Outcomes:
        """Outcomes of the last iterate, of an optimizer that returns another; one draw of it."""
        judges = isinstance(search, Optimizer) and search.judges_last
        if not judges or not any(column.unit == "%" for column in self.columns):
            return {}
        with torch.no_grad():
            outcomes: Outcomes = goal.outcome(perturbed.last_embeddings)
        return outcomes

    def search(self, active_set: bool = True, draws: int = 1) -> Search:
        """The search of the ball; the attack must be resolved."""
        kind = OPTIMIZERS[self.optimizer or OPTIMIZER_OF[self.filled(self.suite)]]
        eps, alpha, steps = self.filled(self.eps), self.filled(self.alpha), self.filled(self.steps)
        return kind(eps, alpha, steps, active_set, draws, self.bits, self.norm)

    def _worse(self, a: Attacked, b: Attacked) -> Attacked:
        """Per query and column the outcome that is worse for the defender."""
        return worse(self.columns, a, b)


def _has_8_bits(images: torch.Tensor) -> bool:
    """True if every pixel is a whole multiple of 1/255, but for rounding."""
    levels = GREY * images
    return bool(((levels - levels.round()).abs() <= GRID_TOLERANCE).all())
