"""Triplet samplers on a batch of B same-class pairs (SPC-2): anchor at 2i, positive at 2i + 1.

They draw one triplet for each pair. A sampler returns a (B, 2B) matrix of weights: how likely each
item of the batch is drawn as the negative (and, for softhard, as the positive) of each anchor. Most
weights are true or false. Where all weights of an anchor are zero, any item of the right class may
be drawn. An anchor is dropped where the batch holds no other class.

Two samplers of RobRank's code differ from their definitions, and are choices of their own:

- ``softhard-robrank`` (``S_self``): where no positive is farther than the closest negative, it
  draws from the whole class, the anchor itself included. An anchor that is its own positive has
  d(a, p) = 0, so the ICS loss of HM becomes lambda d(a, a~) there. A network that separates its
  classes gives 38% such anchors in batches of 56 pairs from 100 classes (CUB), and 4% in batches
  of 128 pairs from 10 classes (Fashion-MNIST). All published rows S of HM and ACT contain them.
- ``semihard-robrank`` (``M_1``): the window above d(a, p) is 1 wide instead of the margin, which is
  0.2. RobRank mines so in all its defenses but EST, SES and HM, under N and E; under C its window
  is 0.2, as that of ``semihard``.

An image that is in a batch twice, as the anchor of one pair and the positive of another, may be
drawn by softhard as its own positive: it is left out by its position alone. That is rare where
classes are large; with classes of two images and batches of 20 pairs it is 16% of the anchors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmlbench.common.lazy import torch
from dmlbench.metrics.distance import Metric, pairwise

if TYPE_CHECKING:
    from dmlbench.compute.distributed import World

SELF_POSITIVE = "softhard-robrank"
ROBRANK_WINDOW = 1.0
ROBRANK_OFFSET = 1e-6


@dataclass(frozen=True)
class Triplets:
    """T triplets: each anchor should be closer to its positive than to its negative.

    Attributes:
        anchor, positive, negative: (T,) positions in the batch.
        weight: of the mean over these triplets in the mean over all processes.
    """

    anchor: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.anchor)

    def stack(self) -> torch.Tensor:
        """(T, 3) positions of anchor, positive, negative."""
        return torch.stack([self.anchor, self.positive, self.negative], dim=1)

    def share(self, world: World) -> Triplets:
        """The triplets that this process works on."""
        part = world.share(len(self))
        weight = world.weight(len(self))
        return Triplets(self.anchor[part], self.positive[part], self.negative[part], weight)


@dataclass(frozen=True)
class Distances:
    """The distances of a batch as a sampler reads them, one row for each anchor.

    Attributes:
        distance: (B, 2B) distances of the anchors to the batch.
        same: (B, 2B) bool, items of the anchor's class other than itself.
        other: (B, 2B) bool, items of other classes.
        positive: (B,) positions of the anchors' partners in their pairs.
        margin: the margin of the triplet loss.
        dim: D of the embeddings.
    """

    distance: torch.Tensor
    same: torch.Tensor
    other: torch.Tensor
    positive: torch.Tensor
    margin: float
    dim: int

    @property
    def d_ap(self) -> torch.Tensor:
        """(B, 1) distance of each anchor to its pair's positive."""
        return self.distance.gather(1, self.positive[:, None])


Weights = tuple["torch.Tensor | None", "torch.Tensor"]
"""Weights (B, 2B) of the positives (None: the pairs' own) and of the negatives."""


def _random(batch: Distances) -> Weights:
    return None, batch.other


def _semihard(batch: Distances) -> Weights:
    """d(a, p) < d(a, n) < d(a, p) + margin (Schroff et al., CVPR 2015)."""
    d = batch.distance
    return None, batch.other & (batch.d_ap < d) & (d < batch.d_ap + batch.margin)


def _semihard_robrank(batch: Distances) -> Weights:
    """d(a, p) < d(a, n) < d(a, p) + 1, under the metrics N and E alike."""
    d = batch.distance
    return None, batch.other & (batch.d_ap < d) & (d < batch.d_ap + ROBRANK_WINDOW)


def _softhard(batch: Distances) -> tuple[torch.Tensor, torch.Tensor]:
    """A negative closer than the farthest same-class item, a positive farther than the
    closest other-class item (Roth et al., ICML 2020).
    """
    farthest = batch.distance.masked_fill(~batch.same, -torch.inf).amax(1, keepdim=True)
    closest = batch.distance.masked_fill(~batch.other, torch.inf).amin(1, keepdim=True)
    return batch.same & (batch.distance > closest), batch.other & (batch.distance < farthest)


def _softhard_robrank(batch: Distances) -> Weights:
    """As softhard; an anchor without a positive that is far enough may be its own positive."""
    positives, negatives = _softhard(batch)
    class_and_itself = ~batch.other
    return torch.where(positives.any(1, keepdim=True), positives, class_and_itself), negatives


def _hardest(batch: Distances) -> Weights:
    """The closest negative."""
    distance = batch.distance.masked_fill(~batch.other, torch.inf)
    closest = torch.zeros_like(batch.other).scatter_(1, distance.argmin(1, keepdim=True), True)
    return None, closest & batch.other


def _distance(batch: Distances) -> Weights:
    """Negatives by the inverse density of distances on the sphere (Wu et al., ICCV 2017):

    q(d) ~ d^(D-2) (1 - d^2 / 4)^((D-3)/2), so that all distances are about as likely to be drawn.

    Under the metric C, d is 1 - cos as in RobRank's code, and not the Euclidean distance that the
    density is of: closer negatives are drawn then.
    """
    d = batch.distance.double()
    log = -(batch.dim - 2) * d.log() - (batch.dim - 3) / 2 * (1 - d.square() / 4).log()
    log = log.masked_fill(~batch.other, -torch.inf).nan_to_num(nan=-torch.inf, posinf=torch.inf)
    # an infinite weight (a duplicate, an antipode) is the largest one that is finite
    finite = log.masked_fill(log == torch.inf, -torch.inf).amax(1, keepdim=True)
    weights = (torch.minimum(log, finite.clamp(min=-1e300)) - finite.clamp(min=-1e300)).exp()
    return None, weights.masked_fill(~batch.other, 0)


SAMPLERS: dict[str, Callable[[Distances], Weights]] = {
    "random": _random,
    "semihard": _semihard,
    "softhard": _softhard,
    "distance": _distance,
    "hardest": _hardest,
    SELF_POSITIVE: _softhard_robrank,
    "semihard-robrank": _semihard_robrank,
}
INITIAL = {
    "random": "R",
    "semihard": "M",
    "softhard": "S",
    "distance": "D",
    "hardest": "H",
    SELF_POSITIVE: "S_self",
    "semihard-robrank": "M_1",
}
"""Sampler -> its letter in the papers; with a subscript where RobRank's code differs from them."""


def own_positive_offset(sampler: str) -> float:
    """The number added to differences of anchors to positives and negatives under ``sampler``.

    RobRank's code adds 1e-6 (torch's pairwise_distance does). It matters where an anchor is its own
    positive: d(a, p) has no gradient at zero, and the 1e-6 gives it one. Everywhere else it is too
    small to change the sign of a gradient, so it is added with ``softhard-robrank`` alone.
    """
    return ROBRANK_OFFSET if sampler == SELF_POSITIVE else 0.0


def sample(
    sampler: str,
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    metric: Metric,
    margin: float,
    generator: torch.Generator,
) -> Triplets:
    """One triplet for each pair of an SPC-2 batch.

    Args:
        sampler: a name in ``SAMPLERS``.
        embeddings: (2B, D), without gradient.
        labels: (2B,); labels[2i] == labels[2i + 1].
        metric: N, E or C.
        margin: the margin of the triplet loss, which semihard reads.
        generator: random numbers, on the embeddings' device.
    """
    device = embeddings.device
    anchor = torch.arange(0, len(labels), 2, device=device)
    match = labels[anchor][:, None] == labels[None, :]
    itself = torch.arange(len(labels), device=device)[None, :] == anchor[:, None]
    distance = pairwise(embeddings[anchor], embeddings, metric)
    batch = Distances(distance, match & ~itself, ~match, anchor + 1, margin, embeddings.shape[1])
    positives, negatives = SAMPLERS[sampler](batch)
    negative = _draw(negatives, batch.other, generator)
    positive = batch.positive if positives is None else _draw(positives, batch.same, generator)
    usable = batch.other.any(1)
    return Triplets(anchor[usable], positive[usable], negative[usable])


def _draw(first: torch.Tensor, fallback: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B,) one position for each row, drawn by the weights ``first`` (B, 2B).

    A row whose weights are all zero draws from ``fallback``, or from all where that is zero too.
    """
    weights = torch.where(first.any(1, keepdim=True), first.double(), fallback.double())
    weights = torch.where(weights.any(1, keepdim=True), weights, 1.0)
    return torch.multinomial(weights, 1, generator=generator)[:, 0]
