"""UAP: one perturbation for all queries, made on the train split and added to every test query.

A step takes a batch of train images x and the loss L of another attack (``by``), in which the train
split is the gallery:

    g = sum_x dL(f(x + v)) / dv,    m <- m + g / |g|_1,    v <- clip(v - alpha sign(m), -eps, eps)

(Li et al., ICCV 2019; theFool32/UAP_retrieval, ``cirtorch/examples/attack``: momentum 1, alpha =
eps / 10, x + v clipped to [0, 1].) The code has one image in a step, lowers alpha by 1% an epoch,
halves v at the start of an epoch where many of its pixels are at +-eps, resizes v from one size to
that of each image, and stops where the R@K of the test set is lowest. Here v has the size of the
images and is not halved, the number of steps is fixed, and the test split is not looked at.

``by=pair`` is the pair-wise loss of the paper, which needs no labels. With c_near and c_far the
nearest and the farthest of 512 k-means centres of the train split (half as many as it has images,
if that is less),

    L = max(0, d(f(x + v), c_far) - d(f(x + v), c_near) + 0.08)

The code multiplies embeddings by ten, its margin is 0.8, and it looks for centres by the inner
product. The default is LTM, the same with the farthest image of another class and the nearest one
of the own class. The label-wise and the list-wise loss of the paper are not here. The first
needs a classifier of its own. The published code of the second sums over each pair of centres in
both orders; so the clean order has no effect on it. On fashion-mini/none at 77/255 (500 queries)
R@1 falls from 78 to 31 by ltm, to 15 by pair and by margin, and to 10 by es.

The paper's budget is ``uap:eps=10/255``. To show a model the perturbation of another one:
``transfer:from=FOLDER,by=uap,optimizer=pgd,steps=500``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from dmlbench.attacks import moved_query
from dmlbench.attacks.base import ATTACKS, Attack, RowWise
from dmlbench.attacks.engine.ball import LInfBall
from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.attacks.engine.objective import Objective
from dmlbench.attacks.engine.optimizer import Optimizer, Perturbed, Search
from dmlbench.attacks.engine.targets import positions
from dmlbench.attacks.transfer import facts_of, followed
from dmlbench.common.errors import CellError, UserError
from dmlbench.common.lazy import np, torch
from dmlbench.core import spec
from dmlbench.core.papers import Paper
from dmlbench.core.protocol import Threat
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.metrics.distance import Metric, pairwise, rowwise, rowwise_gradient

LI = Paper(
    key="li2019universal",
    title="Universal Perturbation Attack Against Image Retrieval",
    authors="Li, Jie and Ji, Rongrong and Liu, Hong and Hong, Xiaopeng and Gao, Yue and Tian, Qi",
    venue="ICCV",
    year=2019,
    url="https://arxiv.org/abs/1812.00552",
)
STEPS = 500
PAIR = "pair"  # the value of ``by`` for the loss of the paper
CENTRES = 512
MARGIN = 0.08
COLUMNS = moved_query.recall_and_map("UAP")


@dataclass(frozen=True)
class PairLoss(RowWise):
    """From the centre ``near`` (B, D) of each image to the centre ``far`` (B, D)."""

    near: torch.Tensor
    far: torch.Tensor
    metric: Metric

    @classmethod
    def of(cls, train: Gallery, e: torch.Tensor) -> PairLoss:
        """For images whose clean embeddings are ``e`` (B, D)."""
        from dmlbench.metrics.clustering import KMEANS_SEED, kmeans  # it needs numpy

        def make() -> torch.Tensor:
            count = max(1, min(CENTRES, len(train) // 2))
            points = np.ascontiguousarray(train.embeddings.float().cpu().numpy())
            return torch.from_numpy(kmeans(points, count, KMEANS_SEED).centres).to(e)

        centres = train.shared("centres", make)
        d = pairwise(e, centres, train.metric)
        return cls(centres[d.argmin(1)], centres[d.argmax(1)], train.metric)

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (B,) and gradients (B, D)."""
        gap = rowwise(e, self.far, self.metric) - rowwise(e, self.near, self.metric) + MARGIN
        toward, away = (rowwise_gradient(e, c, self.metric) for c in (self.far, self.near))
        return gap.relu(), (toward - away) * (gap > 0)[:, None]


@dataclass(frozen=True)
class UniversalGoal(RowWise):
    """The loss on a batch of queries, and what becomes of their ranking."""

    loss: Objective
    gallery: Gallery
    index: torch.Tensor
    seed: int

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of the loss."""
        return self.loss.value_and_grad(e, step)

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        """R@1 and mAP."""
        return moved_query.outcomes(COLUMNS, e, self.index, self.gallery)


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class UniversalPerturbation(Attack):
    """One perturbation for all queries; its steps are those on the train split."""

    card = Card("uap", "one perturbation for all queries, made on the train split", LI)
    columns = COLUMNS
    held_against_noise = False  # one for all need not be stronger than the worst noise of each
    auto = "optimizer=pgd, alpha=eps/10, steps=500"

    by: str = parameter(
        "ltm",
        "spec of the attack on queries whose loss is minimised; pair: that of the paper",
        spec_of=ATTACKS,
    )
    batch: int = parameter(32, "train images in a step", at_least=1)
    norm: Literal["linf"] = parameter(
        "linf", "what eps bounds: the change of every pixel, in which it is clipped", late=True
    )
    attack: Attack | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.restarts:
            raise ValueError("restarts are not for uap: the perturbation begins at zero")
        if self.optimizer == "apgd":
            raise ValueError("optimizer must be pgd: the steps of one perturbation for all")

    def resolve(self, threat: Threat) -> Self:
        """By sign steps of eps / 10, 500 of them, in every suite; complete the other attack.

        Raises:
            UserError: the other attack cannot be read, or is none that follows a gradient.
        """
        eps = threat.eps if self.eps is None else self.eps
        whole = super(
            UniversalPerturbation,
            replace(
                self,
                alpha=self.alpha or eps / 10 or threat.alpha,
                steps=self.steps or STEPS,
                optimizer="pgd",
            ),
        ).resolve(threat)
        if self.by == PAIR:
            return whole
        by = followed(self, self.by)
        if by.restarts or type(by).perturb is not Attack.perturb:
            raise UserError(
                f"uap: of by={self.by} the loss alone is taken: it has no restarts and no search "
                "of its own"
            )
        same = {key: getattr(whole, key) for key in ("eps", "alpha", "steps", "suite")}
        inner = replace(by, **same).resolve(threat)
        return replace(whole, by=spec.canonical(by), attack=inner)

    def version_under(self, metric: Metric) -> int:
        """``version``, plus what is added to that of the attack ``by`` under this metric."""
        by = self.attack
        return self.version + (by.version_under(metric) - by.version if by else 0)

    @property
    def facts(self) -> dict[str, Any]:
        """With the whole attack whose loss it takes."""
        return super().facts | ({"by": facts_of(self.attack)} if self.attack else {})

    @property
    def most_passes(self) -> int:
        """None for a query: the perturbation is made once."""
        return 0

    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> UniversalGoal:
        """The loss on the queries."""
        clusters = gallery.train_split if self.by == PAIR else gallery
        return UniversalGoal(self._loss(gallery, index, seed, clusters), gallery, index, seed)

    def _loss(
        self, gallery: Gallery, index: torch.Tensor, seed: int, clusters: Gallery
    ) -> Objective:
        """On the queries ``index`` (B,) of ``gallery``; pair takes its centres in ``clusters``."""
        if self.by == PAIR:
            return PairLoss.of(clusters, gallery.queries[index])
        return self.filled(self.attack).goal(gallery, index, seed)

    def perturb(
        self,
        search: Search,
        embed: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        goal: UniversalGoal,
        start: torch.Tensor | None,
    ) -> Perturbed:
        """Add the perturbation, which is made with the first batch of queries."""
        assert isinstance(search, Optimizer)
        passes = 0

        def make() -> torch.Tensor:
            nonlocal passes
            passes = self.filled(self.steps) * self.batch * search.draws
            return self._made(search, embed, goal.gallery.train_split, goal.seed)

        found = goal.gallery.shared(f"{spec.canonical(self)} {goal.seed}", make)
        ball = LInfBall.around(images, search.eps)
        adversarial = search.shown(ball.project_(images + found), ball)
        search.verify(images, adversarial)
        e = goal.gallery.queries[goal.index]
        return Perturbed(adversarial, passes, passes, e, torch.zeros_like(goal.index).bool())

    def _made(
        self,
        search: Optimizer[Any],
        embed: Callable[[torch.Tensor], torch.Tensor],
        train: Gallery,
        seed: int,
    ) -> torch.Tensor:
        """The perturbation, (1, C, H, W)."""
        eps, alpha, steps = self.filled(self.eps), self.filled(self.alpha), self.filled(self.steps)
        assert train.images is not None
        order = positions(len(train), steps * self.batch, seed, "uap").to(train.labels.device)
        perturbation = torch.zeros_like(train.images(order[:1]))
        momentum = torch.zeros_like(perturbation)
        for step, rows in enumerate(torch.split(order, self.batch)):
            clean = train.images(rows)
            ball, moved = LInfBall.around(clean, eps), clean + perturbation
            shown = search.shown(ball.project_(moved.clone()), ball)
            goal = self._loss(train, rows, seed, train)
            _, _, _, dx = search.slope(embed, shown, goal, step)
            clipped = (moved < 0) | (moved > 1)  # there v moves no pixel
            gradient = dx.masked_fill(clipped, 0).sum(0, keepdim=True)
            momentum += gradient / gradient.abs().sum().clamp(min=torch.finfo(dx.dtype).tiny)
            if not momentum.isfinite().all():
                raise CellError(f"the gradient is not finite within {steps} steps")
            perturbation = perturbation - alpha * momentum.sign()
            perturbation = perturbation.clamp(-eps, eps)
        return perturbation
