"""A certificate of the top-1 under Gaussian smoothing, and the attack that breaks the same model.

The model is h(x) = E f(x + sigma z), the mean embedding under normal noise in every pixel, searched
in a gallery that stays as it is (``dmlbench.attacks.engine.smoothing``). For each query

    Certified   no change of an L2 length below it makes the top-1 of h wrong
    Smoothed    the least length at which an attack (APGD on the margin) has made it wrong

so Certified <= Smoothed, and what lies between is not known. From the mean e of N noisy copies:

    Certified = R(M(e) - error),    R(m) = sigma PHI^-1((1 + m) / 2)

M(e) is the distance to the nearest bisector (``bisectors``), the error that of the mean at the
stated confidence (``smoothing.mean_error``). 0 where it would be negative, or the top-1 of e is
wrong. Certified holds for each query with the stated probability over the noise; that is not the
probability that all queries' hold.

RetrievalGuard (Wu et al., ICML 2022) bounds the Lipschitz constant of h and takes half of the
difference of two distances as margin. Here the margin is the distance to the bisector and R stands
for the Lipschitz bound; neither is ever smaller. The paper's tables are from 100,000 copies a
query; give ``samples=100000`` for less error.

The gallery is that of f. With ``gallery_samples=K`` each item is the mean of K noisy copies, scaled
to unit length. What is certified is then the search among these very items, which stay as they are:
their Monte-Carlo error costs nothing. The passes that make them are not counted, like those that
embed the gallery. With ``of=item`` the item is still the top-1 of the clean query.

The attack follows the gradient through ``draws`` copies whose noise is fixed, the same for all
queries. Whether a query is broken is judged by ``judges`` other copies, drawn anew in each round.
So Smoothed is that of h but for the Monte-Carlo error at the border. The lengths that are looked at
are eps / 2^(i/4), down to eps / 128. Both columns end at eps, which is 8 sigma unless it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from dmlbench.attacks.base import ATTACKS, Column
from dmlbench.attacks.engine.apgd import APGD
from dmlbench.attacks.engine.bisection import LEVEL_ROUNDING, Bisected, Levels, bisect, rounds
from dmlbench.attacks.engine.bisectors import margin
from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.attacks.engine.optimizer import Perturbed, Search
from dmlbench.attacks.engine.smoothing import (
    Embed,
    MeanOverNoise,
    mean_error,
    radius,
    smoothed,
)
from dmlbench.attacks.top1 import TopOneAttack, TopOneGoal
from dmlbench.common.errors import CellError
from dmlbench.common.lazy import np, torch
from dmlbench.core.flags import Flag, certificate
from dmlbench.core.papers import Paper
from dmlbench.core.protocol import Threat
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter

WU = Paper(
    key="wu2022retrievalguard",
    title="RetrievalGuard: Provably Robust 1-Nearest Neighbor Image Retrieval",
    authors="Wu, Yihan and Zhang, Hongyang and Huang, Heng",
    venue="ICML",
    year=2022,
    url="https://arxiv.org/abs/2206.11225",
)
CERTIFIED, ATTACKED = "Certified", "Smoothed"
REACH = 8  # eps over sigma, unless it is given
STEPS = 20  # of one search
LENGTH_ROUNDING = 1e-3  # of a length of 1, in any precision
PER_OCTAVE, OCTAVES = 4, 7  # levels of the lengths that are looked at
LENGTHS = "eps, an L2 length"
GALLERY = "certified gallery"  # the noise of its items
ABOVE = "certified_above_attack"  # a finding: the share of queries that contradict the certificate


def levels(eps: float) -> list[float]:
    """The lengths that are looked at, ascending; the last is eps."""
    if not eps:
        return [0.0]
    return [eps * 2 ** (-i / PER_OCTAVE) for i in range(PER_OCTAVE * OCTAVES, -1, -1)]


@dataclass(frozen=True)
class Certificates(Bisected):
    """With the certified radius and the error of the mean embedding of each query, (B,) float64."""

    certified: torch.Tensor
    error: torch.Tensor


@dataclass(frozen=True)
class CertifiedGoal(TopOneGoal):
    """The margin, with both lengths as its outcome; ``end`` is the largest one."""

    end: float

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        """Both if nothing but ``e`` is known: ``end`` where its top-1 is right, else 0.

        The certificate and the bisection find closer ones (``Certified.read``).
        """
        whole = self.first(e) / 100 * self.end
        return {CERTIFIED: whole, ATTACKED: whole.clone()}


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class Certified(TopOneAttack):
    """The certificate and the attack."""

    card = Card("certified", "the L2 length below which a smoothed top-1 is provably right", WU)
    columns = (
        Column(
            CERTIFIED,
            "",
            "higher",
            "The L2 length below which no change of the query makes the top-1 of the smoothed "
            "model wrong, with the stated confidence; 0 where that top-1 is wrong already, or "
            "nothing is certified. The mean is the area under the certified R@1 as a function of "
            "the length.",
            (0, float("inf")),
            curve=LENGTHS,
        ),
        Column(
            ATTACKED,
            "",
            "higher",
            "The least L2 length at which an attack made the top-1 of the smoothed model wrong; 0 "
            "where it is wrong already, eps where it never was. Where the certificate holds, it is "
            "not below Certified.",
            (0, float("inf")),
            curve=LENGTHS,
        ),
    )
    loss = "margin"
    held_against_noise = False  # that check embeds without smoothing
    auto = "eps=8 sigma, optimizer=apgd, alpha=2 eps, steps=20"

    norm: Literal["l2"] = parameter("l2", "what eps bounds: normal noise certifies lengths")
    sigma: float = parameter(
        0.25, "standard deviation of the noise, with pixels in [0, 1]", above=0
    )
    samples: int = parameter(1000, "noisy copies that a query is certified by", at_least=2)
    confidence: float = parameter(0.999, "probability that a query's certificate holds", above=0)
    draws: int = parameter(16, "noisy copies that the attack follows the gradient of", at_least=1)
    judges: int = parameter(
        250, "noisy copies that say whether the attack has broken a query", at_least=1
    )
    gallery_samples: int = parameter(
        0,
        "noisy copies that each gallery item is the mean of; 0: it is that of its clean image",
        at_least=0,
        late=True,
    )

    def __post_init__(self) -> None:
        if self.confidence >= 1:
            raise ValueError(f"confidence must be below 1, got {self.confidence:g}")
        if self.optimizer == "pgd":
            raise ValueError("optimizer must be apgd: the balls of a batch differ in their steps")
        if self.restarts:
            raise ValueError("restarts are not for certified: each search begins at the last one")

    def resolve(self, threat: Threat) -> Self:
        """By APGD of 20 steps in every suite; eps is 8 sigma."""
        eps = REACH * self.sigma if self.eps is None else self.eps
        whole = replace(self, eps=eps, steps=self.steps or STEPS, optimizer="apgd")
        return super(Certified, whole).resolve(threat)

    @property
    def most_passes(self) -> int:
        """Those of all rounds, of each copy."""
        return super().most_passes * rounds(levels(self.eps or 0)) * self.draws

    @property
    def most_forward_passes(self) -> int:
        """The copies of the certificate, and those that judge each round."""
        return self.samples + self.judges * rounds(levels(self.eps or 0))

    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> CertifiedGoal:
        """The margin."""
        goal = super().goal(gallery, index, seed)
        return CertifiedGoal(**vars(goal), end=self.eps or 0)

    def perturb(
        self,
        search: Search,
        embed: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        goal: CertifiedGoal,
        start: torch.Tensor | None,
    ) -> Certificates:
        """Certify the queries, then bisect the lengths at which the attack breaks them.

        Raises:
            CellError: embeddings have no bounded length (metric E), or one of the gallery is zero.
        """
        assert isinstance(search, APGD)  # __post_init__ has seen to it
        seed = goal.seed
        if goal.gallery.metric == "E":
            raise CellError("certified is for the metrics N and C: those of E have any length")
        if self.gallery_samples:
            goal = self._in_smoothed_gallery(goal, embed, len(images))
        _check_lengths(goal.gallery)
        shown = len(images) * self.samples

        def mean(part: CertifiedGoal, x: torch.Tensor, purpose: str, count: int) -> torch.Tensor:
            what = f"{self.card.name} {purpose}"
            return smoothed(embed, x, part.index, seed, what, self.sigma, count)

        def right(part: CertifiedGoal, x: torch.Tensor, number: int) -> torch.Tensor:
            nonlocal shown
            shown += len(x) * self.judges
            return part.first(mean(part, x, f"round {number}", self.judges).to(x.dtype)) > 0

        e = mean(goal, images, "certificate", self.samples)
        clean = goal.first(e.to(images.dtype)) > 0
        error = mean_error(e.norm(dim=1), self.samples, self.confidence)
        sure = margin(goal.gallery, e, goal.index, goal.item) - error
        certified = radius(sure, self.sigma).masked_fill(~clean, 0).clamp(max=self.eps or 0)
        known = levels(self.eps or 0)
        lengths = torch.tensor([0.0, *known], device=images.device)
        every = Levels(lengths, lengths, float(search.alpha) / (self.eps or 1))
        purpose = f"{self.card.name} attack"
        through = MeanOverNoise(embed, images, seed, purpose, self.sigma, self.draws)
        found = bisect(search, through, images, goal, every, clean, right, start)
        values = vars(found) | {
            "passes": found.passes * self.draws,
            "full_passes": len(images) * self.most_passes * search.draws,
            "forward_passes": shown,
            "full_forward_passes": len(images) * self.most_forward_passes,
        }
        return Certificates(**values, certified=certified, error=error)

    def _in_smoothed_gallery(self, goal: CertifiedGoal, embed: Embed, batch: int) -> CertifiedGoal:
        """The goal in the gallery of mean embeddings, which is made once.

        Raises:
            CellError: the images of the gallery are not at hand.
        """
        if goal.gallery.images is None:
            raise CellError("gallery_samples needs the images of the gallery, which are not here")

        given, seed, sigma, count = goal.gallery, goal.seed, self.sigma, self.gallery_samples

        def make() -> Gallery:
            assert given.images is not None
            every = torch.arange(len(given), device=goal.index.device)
            means = [
                smoothed(embed, given.images(rows), rows, seed, GALLERY, sigma, count)
                for rows in torch.split(every, batch)
            ]
            e = torch.cat(means).to(given.embeddings.dtype)
            unit = torch.nn.functional.normalize(e, dim=1)
            return replace(given, embeddings=unit, queries=given.queries, _shared={})

        gallery = given.shared(f"{GALLERY} {sigma} {count} {seed}", make)
        return self.goal(gallery, goal.index, seed)

    def read(
        self, goal: CertifiedGoal, perturbed: Perturbed, after: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Both radii; NaN where there is no R@1."""
        assert isinstance(perturbed, Certificates)
        none = goal.first(after).isnan()
        found = {CERTIFIED: perturbed.certified, ATTACKED: perturbed.radius.double()}
        return {name: value.masked_fill(none, torch.nan) for name, value in found.items()}

    def observe(self, goal: CertifiedGoal, perturbed: Perturbed) -> dict[str, torch.Tensor]:
        """The error of the mean, and whether the attack went below the certificate."""
        assert isinstance(perturbed, Certificates)
        above = _contradicted(perturbed.certified, perturbed.radius.double())
        return {"monte_carlo_error": perturbed.error, ABOVE: above.double()}

    def flags(
        self, outcomes: Mapping[str, np.ndarray[Any, Any]], findings: Mapping[str, Any]
    ) -> list[Flag]:
        """A flag where more certificates are contradicted than the confidence explains."""
        certified, attacked = outcomes[CERTIFIED], outcomes[ATTACKED]
        broken, queries = _contradicted(certified, attacked).sum(), (~np.isnan(certified)).sum()
        return certificate(int(broken), int(queries), self.confidence)


def _check_lengths(gallery: Gallery) -> None:
    """CellError if an item has no unit length: R(m) holds for planes through the origin alone."""
    lengths = torch.linalg.vector_norm(gallery.embeddings, dim=1)
    far = (lengths - 1).abs()
    if len(lengths) and float(far.max()) > LENGTH_ROUNDING:
        item = int(far.argmax())
        raise CellError(
            f"certified needs gallery embeddings of length 1, and that of item {item} has length "
            f"{float(lengths[item]):g}: leave that image out of the gallery"
        )


def _contradicted(certified: Any, attacked: Any) -> Any:
    """True where the attack broke a query below its certified radius; tensors or arrays."""
    return certified > attacked * (1 + LEVEL_ROUNDING)
