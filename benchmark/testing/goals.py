"""Checks of an attack's goal: loss, gradient and targets of a batch, without a network."""

from __future__ import annotations

import torch

from dmlbench.attacks.base import Gallery, Goal
from dmlbench.metrics.distance import METRICS
from dmlbench.testing.attack_subject import Subject, alike, near, noise, trained_on_itself
from dmlbench.testing.findings import FlawError, require
from dmlbench.testing.large import largest

STEPS = (0, 1, 5)  # at which the loss is looked at; some attacks treat the first one differently
H = 1e-7  # of finite differences, in float64


def gradient(s: Subject) -> None:
    """The gradient agrees with finite differences, in float64, under every metric."""
    index = torch.arange(0, 40, 5)
    for metric in METRICS:
        gallery = s.wide_gallery(metric)
        goal = s.goal(gallery, index)
        for step in STEPS:
            e = near(gallery, index, seed=step)
            where = f"at step {step} under metric {metric}"
            slope = _gradient(goal, e, step, where)
            for number in range(3):
                direction = noise(e.shape, seed=100 + number)
                ahead = goal.value_and_grad(e + H * direction, step)[0]
                behind = goal.value_and_grad(e - H * direction, step)[0]
                expected, said = (ahead - behind) / (2 * H), (slope * direction).sum(1)
                wrong = (expected - said).abs() > 1e-5 + 1e-4 * expected.abs()
                if wrong.any():
                    row = int(wrong.nonzero()[0])
                    raise FlawError(
                        f"the gradient is not that of the loss: {where}, where query "
                        f"{int(index[row])} is moved a little, the loss changes at a rate of "
                        f"{expected[row]:.5g} and the gradient says {said[row]:.5g} "
                        f"({int(wrong.sum())} of {len(wrong)} queries differ). PGD would descend "
                        "another loss than this one: derive value_and_grad again, or let "
                        "torch.autograd.grad take it from the loss of e"
                    )


def _gradient(goal: Goal, e: torch.Tensor, step: int, where: str) -> torch.Tensor:
    """The gradient, after a look at the form of it and of the loss."""
    given = e.clone()
    loss, slope = goal.value_and_grad(given, step)
    require(
        torch.equal(given, e),
        "value_and_grad changes the embeddings it is given, which PGD still needs: work on a copy",
    )
    require(
        loss.shape == e.shape[:1] and slope.shape == e.shape,
        f"{where} value_and_grad returns a loss of shape {tuple(loss.shape)} and a gradient of "
        f"{tuple(slope.shape)}: it must be one loss per query, {tuple(e.shape[:1])}, and "
        f"{tuple(e.shape)}",
    )
    require(
        loss.dtype == torch.float64,
        f"the loss is {loss.dtype} for embeddings in float64: compute in the type of e",
    )
    require(
        loss.isfinite().all() and slope.isfinite().all(),
        f"{where} the loss or its gradient is not finite: guard divisions and logarithms",
    )
    return slope


def subset(s: Subject) -> None:
    """``take(rows)`` gives the goal of the subset: the active set relies on it."""
    index, rows = torch.arange(10, 20), torch.tensor([7, 2])
    advice = (
        "PGD drops queries that have stopped and goes on with goal.take(rows); derive the goal "
        "from RowWise, give each tensor field one row a query, and override take for other fields"
    )
    for gallery in (s.gallery, s.wide_gallery("N")):
        e = near(gallery, index, seed=1)[rows]
        whole, part = s.goal(gallery, index), s.goal(gallery, index[rows])
        everything = torch.arange(len(rows))
        for taken in (whole.take(rows), part.take(everything), whole.take(rows).take(everything)):
            _compare(taken, part, e, f"goal.take(rows) is not the goal of those rows: {advice}")


def batch(s: Subject) -> None:
    """Targets, losses and outcomes of a query do not depend on the batch around it."""
    gallery, index = s.wide_gallery("N"), torch.tensor([3, 39, 0, 17, 25, 8])
    e, goal = near(gallery, index, seed=2), s.goal(gallery, index)
    advice = (
        "numbers would depend on the batch size and the order; take no mean or maximum over the "
        "batch, and draw targets by index (dmlbench.attacks.engine.targets.draw)"
    )
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    flaw = f"a query has another loss or outcome when the batch has another order: {advice}"
    _compare(goal.take(order), s.goal(gallery, index[order]), e[order], flaw)
    for row in range(len(index)):
        alone = torch.tensor([row])
        flaw = f"a query alone has another loss or outcome than in a batch: {advice}"
        _compare(s.goal(gallery, index[alone]), goal, e[alone], flaw, e, row)


def _compare(
    a: Goal, b: Goal, e: torch.Tensor, flaw: str, other: torch.Tensor | None = None, row: int = -1
) -> None:
    """FlawError unless ``a`` at ``e`` is ``b`` there; or row ``row`` of ``b`` at ``other``."""
    at = e if other is None else other
    rows = slice(None) if other is None else slice(row, row + 1)
    for step in STEPS:
        pairs = zip(a.value_and_grad(e, step), b.value_and_grad(at, step), strict=True)
        require(all(alike(x, y[rows]) for x, y in pairs), flaw)
    found, expected = a.outcome(e), b.outcome(at)
    require(all(alike(found[name], expected[name][rows]) for name in expected), flaw)


def memory(s: Subject) -> None:
    """Nothing of size B x N x D is held: real galleries have 60,000 items."""
    b, n, d = 7, 211, 13  # primes: a tensor with all three in its size is a product of them
    e = torch.nn.functional.normalize(noise((n, d), seed=5), dim=1).float()
    gallery = trained_on_itself(Gallery(e, torch.arange(n) % 5, "N"))
    index = torch.arange(b)

    def work() -> None:
        goal = s.goal(gallery, index)
        goal.value_and_grad(e[index], 0)
        goal.outcome(e[index])

    operation = largest(work, b * n * d)
    require(
        operation is None,
        f"{operation} makes a tensor with a number for each query, gallery item and dimension: "
        "for 60,000 items that does not fit into memory; use a matrix product "
        "(dmlbench.metrics.distance.pairwise), or a part of the gallery at a time",
    )
