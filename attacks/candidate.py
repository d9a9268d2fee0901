"""CA+ and CA-: a candidate is perturbed to move in the rankings of chosen queries.

The candidate attack of AdvRank (ECCV 2020, section "Candidate Attack").

With q a chosen query, x the other gallery items that it sees and c~ the perturbed candidate,

    CA+:  L = mean_q mean_x max(0, d(q, c~) - d(q, x))
    CA-:  L = mean_q mean_x max(0, d(q, x) - d(q, c~))

The distances d(q, x) are constant over the steps. They are sorted once and summed up, and then the
loss and its slope in d(q, c~) are a search: if k of the n distances are within a = d(q, c~), then
CA+ is (k a - sum of the k smallest) / n with slope k / n.

Where the candidate and a query have the same embedding, as duplicates of an image have, the
Euclidean distance d(q, c~) has no gradient. So in the first step of CA- 1e-7 is added to such a
query, as ES does (``beside``). Under the metric C rounding decides the first step there.

Where queries and gallery are apart, there are as many candidates as queries, drawn from the gallery
(``Gallery.candidates``), and the queries of each are those that see it.

``strict`` ranks c~ among the items that the query sees, without the candidate's own entry, ties
half. ``ers``, as the published code, keeps all entries and counts strictly closer ones; its CA-
leaves a candidate with the embedding of its query where it is.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar, Literal

from dmlbench.attacks.base import ATTACKS, Attack, Column, RowWise
from dmlbench.attacks.embedding_shift import FIRST_OFFSET, beside
from dmlbench.attacks.engine.gallery import BLOCK_CELLS, Gallery
from dmlbench.common.lazy import torch
from dmlbench.core.papers import ADVRANK
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.metrics.distance import Metric, rowwise, rowwise_gradient
from dmlbench.metrics.ranks import percentile_rank
from dmlbench.metrics.relevance import put

SORTED_CELLS = 32_000_000  # sorted distances of a batch, 12 bytes each with their sums
LOWERED = "Percentile rank that the candidate falls to: 0 is untouched, 100 the bottom."
RAISED = "Percentile rank that the candidate reaches: 50 is untouched, 0 the top."


@dataclass(frozen=True)
class CandidateGoal(RowWise):
    """The candidates of a batch against their queries.

    Attributes:
        column: heading of the outcome.
        up: true for CA+ (towards the top), false for CA- (towards the bottom).
        parted: true if a candidate is moved away from a query that has the same embedding.
        tie: distances that differ by at most this are tied; 0 counts strictly closer ones only.
        metric: N, E or C.
        most: the largest number of items that any list ranks a candidate among.
        others: (B, w) n, the number of items that it is ranked among in each list.
        queries: (B, w, D) embeddings of the chosen queries.
        distances: (B, w, N) their distances to the others, ascending, then inf.
        sums: (B, w, N + 1) float64; sums[..., k] is the sum of the k smallest distances.
    """

    column: str
    up: bool
    parted: bool
    tie: float
    metric: Metric
    most: int
    others: torch.Tensor
    queries: torch.Tensor
    distances: torch.Tensor
    sums: torch.Tensor

    def value_and_grad(self, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (B,) float64 and gradients (B, D); at a tie an item counts as active."""
        a = rowwise(self.queries, e[:, None], self.metric)
        k = torch.searchsorted(self.distances, a[..., None], right=self.up)
        within = self.sums.gather(2, k)[..., 0]
        k, far = k[..., 0], a.double()
        if self.up:
            loss, slope = k * far - within, k
        else:
            beyond, whole = self.others - k, self.sums.gather(2, self.others[..., None])[..., 0]
            loss, slope = whole - within - beyond * far, -beyond
        longer = self.most / self.others.double()  # exactly 1 where all lists are as long
        queries = self.queries
        if self.parted and step == 0:
            same = (a == 0)[..., None]
            queries = torch.where(same, beside(queries, FIRST_OFFSET, self.metric), queries)
        direction = rowwise_gradient(e[:, None], queries, self.metric)
        de = ((slope * longer)[..., None].to(e.dtype) * direction).mean(1) / self.most
        return (loss * longer).mean(1) / self.most, de

    def outcome(self, e: torch.Tensor) -> dict[str, torch.Tensor]:
        """Percentile rank of the candidate in its queries' lists, mean over the w queries."""
        a = rowwise(self.queries.double(), e[:, None].double(), self.metric)[..., None]
        closer = torch.searchsorted(self.distances.double(), a - self.tie)
        tied = torch.zeros_like(closer)
        if self.tie:
            tied = torch.searchsorted(self.distances.double(), a + self.tie, right=True) - closer
        rank = percentile_rank(closer, tied, self.others[..., None])
        return {self.column: rank[..., 0].mean(1)}


@dataclass(frozen=True, kw_only=True)
class CandidateAttack(Attack):
    """The base of CA+ and CA-: it draws the queries and sorts their distances."""

    perturbs: ClassVar[Literal["query", "candidate"]] = "candidate"
    up: ClassVar[bool]

    w: int = parameter(1, "number of queries in whose rankings a candidate is moved", at_least=1)

    @abc.abstractmethod
    def pool(self, gallery: Gallery, index: torch.Tensor) -> torch.Tensor | None:
        """(B, P) queries that those of each candidate are drawn from; None: all that see it."""

    def most_rows(self, gallery: Gallery) -> int:
        """As many as keep the sorted distances within 400 MB, whatever the gallery's size."""
        return max(1, SORTED_CELLS // (self.w * len(gallery)))

    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> CandidateGoal:
        """Draw w queries for each candidate and sort their distances to the gallery."""
        n = len(gallery)
        if self.strict:
            gallery.check_ranks()
        pool = self.pool(gallery, index)
        chosen = gallery.turned.draw(index, self.w, seed, self.card.name, pool)
        queries, excluded = gallery.queries[chosen], gallery.relevance.excluded
        candidates = gallery.candidates[index]
        distances = queries.new_empty(*chosen.shape, n)
        sums = queries.new_zeros(*chosen.shape, n + 1, dtype=torch.float64)
        for rows in torch.split(torch.arange(len(index)), max(1, BLOCK_CELLS // (n * self.w))):
            d = gallery.distances(queries[rows].flatten(0, 1))
            if self.strict:
                excluded.put(d, chosen[rows].flatten(), torch.inf)
                put(d, candidates[rows].repeat_interleave(self.w)[:, None], torch.inf)
            d = d.view(len(rows), self.w, n)
            distances[rows] = d.to(queries.dtype).sort(dim=2).values
            sums[rows, :, 1:] = distances[rows].double().cumsum(dim=2)
        others = gallery.seen - 1 if self.strict else torch.full_like(gallery.seen, n)
        tie = gallery.tie if self.strict else 0.0
        most, ranked = int(others.max()), others[chosen]
        name, metric = self.columns[0].name, gallery.metric
        parted = self.strict and not self.up and gallery.metric != "C"
        return CandidateGoal(
            name, self.up, parted, tie, metric, most, ranked, queries, distances, sums
        )


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class CandidateUp(CandidateAttack):
    """CA+, queries drawn uniformly."""

    card = Card("ca+", "raise a candidate in the rankings of w random queries", ADVRANK)
    columns = (Column("CA+", "%", "higher", RAISED, rank=True),)
    up = True

    def pool(self, gallery: Gallery, index: torch.Tensor) -> None:
        """All that see the candidate."""
        return None


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class CandidateDown(CandidateAttack):
    """CA-, queries drawn from the nearest 1% of the candidate (at least w)."""

    card = Card("ca-", "lower a candidate in the rankings of w queries near it", ADVRANK)
    columns = (Column("CA-", "%", "lower", LOWERED, rank=True),)
    up = False

    def version_under(self, metric: Metric) -> int:
        """The card's version, plus 1 under N and E in the suites strict and auto.

        The earlier version did not move a candidate that has the embedding of its query.
        """
        return self.version + (self.strict and metric != "C")

    def pool(self, gallery: Gallery, index: torch.Tensor) -> torch.Tensor:
        """The candidate's nearest 1%, or its nearest w where 1% is fewer."""
        return gallery.turned.neighbourhood(index, self.w)
