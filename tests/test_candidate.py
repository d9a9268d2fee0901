"""CA+ and CA- against an explicit loop through autograd; targets from identity alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmlbench.attacks.base import Attack, Gallery
from dmlbench.attacks.candidate import CandidateDown, CandidateGoal, CandidateUp
from dmlbench.attacks.engine import targets
from dmlbench.common.errors import CellError, UserError
from dmlbench.compute.embedding import EmbeddingModel, embed, frozen
from dmlbench.core.protocol import Threat
from dmlbench.datasets.base import RetrievalData
from dmlbench.testing import tiny_network

THREAT = Threat(eps=0.1, alpha=0.03, steps=6)


def distance(a: torch.Tensor, b: torch.Tensor, metric: str) -> torch.Tensor:
    return 1 - a @ b if metric == "C" else (a - b).norm()


def slow_loss(
    e: torch.Tensor, own: int, queries: list[int], gallery: Gallery, up: bool
) -> torch.Tensor:
    """One candidate: the hinge over every query and every other item, written out."""
    x, metric = gallery.embeddings, gallery.metric
    terms = []
    for q in queries:
        a = distance(x[q], e, metric)
        for n in range(len(x)):
            if n not in (own, q):
                b = distance(x[q], x[n], metric)
                terms.append((a - b if up else b - a).clamp(min=0))
    return torch.stack(terms).mean()


def slow_rank(e: torch.Tensor, own: int, queries: list[int], gallery: Gallery) -> float:
    x, metric = gallery.embeddings, gallery.metric
    ranks = []
    for q in queries:
        a = distance(x[q], e, metric).item()
        others = [distance(x[q], x[n], metric).item() for n in range(len(x)) if n not in (own, q)]
        closer, tied = sum(b < a for b in others), sum(b == a for b in others)
        ranks.append(100 * (closer + tied / 2) / len(others))
    return float(np.mean(ranks))


def make_gallery(metric: str, dtype: torch.dtype, n: int = 40) -> Gallery:
    x = torch.randn(n, 6, dtype=dtype)
    if metric != "E":
        x = torch.nn.functional.normalize(x, dim=1)
    return Gallery(x, torch.arange(n) % 5, metric)  # type: ignore[arg-type]


def chosen_queries(attack: Attack, gallery: Gallery, index: torch.Tensor) -> list[list[int]]:
    goal = attack.goal(gallery, index, seed=3)
    x = gallery.embeddings
    return [[int((x == q).all(1).nonzero()) for q in row] for row in goal.queries]  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("metric", ["N", "E", "C"])
@pytest.mark.parametrize("w", [1, 5])
@pytest.mark.parametrize("cls", [CandidateUp, CandidateDown])
def test_loss_gradient_and_rank_equal_the_definition(
    cls: type[CandidateUp] | type[CandidateDown], w: int, metric: str, dtype: torch.dtype
) -> None:
    gallery, index = make_gallery(metric, dtype), torch.tensor([3, 0, 39, 17])
    attack = cls(w=w)
    goal = attack.goal(gallery, index, seed=3)
    e = gallery.embeddings[index] + 0.3 * torch.randn(4, 6, dtype=dtype)
    loss, gradient = goal.value_and_grad(e, 0)
    rank = goal.outcome(e)[cls.columns[0].name]
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    for row, queries in enumerate(chosen_queries(attack, gallery, index)):
        own = int(index[row])
        x = e[row].clone().requires_grad_()
        expected = slow_loss(x, own, queries, gallery, cls.up)
        (slope,) = torch.autograd.grad(expected, x)
        assert loss[row].item() == pytest.approx(expected.item(), rel=5 * tolerance, abs=tolerance)
        assert (gradient[row] - slope).norm() <= 2 * tolerance * max(slope.norm().item(), 1)
        assert rank[row].item() == pytest.approx(slow_rank(e[row], own, queries, gallery))


@pytest.mark.parametrize("cls", [CandidateUp, CandidateDown])
def test_a_collapsed_model_gains_nothing_from_its_rounding(
    cls: type[CandidateUp] | type[CandidateDown],
) -> None:
    for seed in range(4):
        one = torch.nn.functional.normalize(
            torch.randn(1, 64, generator=torch.Generator().manual_seed(seed)), dim=1
        )
        for metric in ("N", "C"):
            gallery = Gallery(one.repeat(200, 1), torch.arange(200) % 5, metric)  # type: ignore[arg-type]
            index = torch.arange(20)
            rank = cls().goal(gallery, index, seed=0).outcome(one.repeat(20, 1))
            assert rank[cls.columns[0].name].tolist() == [50] * 20


@pytest.mark.parametrize("cls", [CandidateUp, CandidateDown])
def test_ties_count_half_and_the_saturated_gradient_is_zero(
    cls: type[CandidateUp] | type[CandidateDown],
) -> None:
    collapsed = Gallery(torch.ones(20, 3), torch.arange(20) % 2, "E")
    index = torch.tensor([4])
    goal = cls(w=2).goal(collapsed, index, seed=0)
    assert goal.outcome(torch.ones(1, 3))[cls.columns[0].name].item() == 50
    gallery = make_gallery("E", torch.float64)
    goal = cls(w=1).goal(gallery, index, seed=0)
    reached = goal.queries[:, 0] if cls.up else goal.queries[:, 0] + 1e6
    loss, gradient = goal.value_and_grad(reached, 0)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert gradient.abs().max() == 0
    rank = goal.outcome(reached)[cls.columns[0].name].item()
    assert rank == (0 if cls.up else 100)


def test_targets_do_not_depend_on_order_subset_or_count() -> None:
    gallery = make_gallery("N", torch.float64, n=300)
    whole = CandidateUp(w=3).goal(gallery, torch.arange(300), seed=1).queries
    subset = torch.tensor([200, 7, 41])
    assert torch.equal(CandidateUp(w=3).goal(gallery, subset, seed=1).queries, whole[subset])
    assert torch.equal(CandidateUp(w=1).goal(gallery, subset, seed=1).queries, whole[subset][:, :1])
    assert not torch.equal(CandidateUp(w=3).goal(gallery, subset, seed=2).queries, whole[subset])
    # eps, alpha and steps are no part of a target's identity: a curve over eps is one experiment
    stronger = CandidateUp(w=3, eps=0.5, steps=9).goal(gallery, subset, seed=1).queries
    assert torch.equal(stronger, whole[subset])


def test_draws_are_uniform_over_the_pool() -> None:
    size, count = 12, 2
    index = torch.arange(6000)
    pool = torch.tensor([[n for n in range(size) if n != i % size] for i in index.tolist()])
    drawn = targets.draw(size, index, count, seed=5, purpose="test", pool=pool)
    everything = targets.draw(size, index[:size], count, seed=5, purpose="test")
    assert torch.equal(everything, drawn[:size])  # no pool: all but the query itself
    assert (drawn != (index % size)[:, None]).all()
    assert (drawn[:, 0] != drawn[:, 1]).all()
    counts = torch.bincount(drawn.flatten(), minlength=size).double()
    expected = 6000 * count / size
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square < 31.3  # the 99.9% quantile at 11 degrees of freedom


def test_ca_minus_draws_from_the_nearest_percent() -> None:
    gallery = make_gallery("E", torch.float64, n=500)
    index = torch.arange(500)
    pool = CandidateDown(w=1).pool(gallery, index)
    assert pool.shape == (500, 5)
    for row in (0, 123, 499):
        d = (gallery.embeddings - gallery.embeddings[row]).norm(dim=1)
        d[row] = torch.inf
        assert set(pool[row].tolist()) == set(d.argsort()[:5].tolist())
    assert CandidateDown(w=10).pool(gallery, index).shape == (500, 10)


def test_a_gallery_too_small_is_refused() -> None:
    gallery = make_gallery("N", torch.float64, n=4)
    for attack in (CandidateUp(w=5), CandidateDown(w=5)):
        with pytest.raises(CellError, match="draws 5 targets per query, but the gallery of 4"):
            attack.goal(gallery, torch.tensor([0]), seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [CandidateUp, CandidateDown])
def test_batch_size_and_active_set_change_no_outcome(
    cls: type[CandidateUp] | type[CandidateDown],
    model: EmbeddingModel,
    images: torch.Tensor,
    gallery: Gallery,
) -> None:
    attack = cls(w=2).resolve(THREAT)
    name = cls.columns[0].name

    def outcomes(batch: int, index: torch.Tensor, active_set: bool) -> torch.Tensor:
        parts = [
            attack.run(model, images[i], i, gallery, seed=0, active_set=active_set).outcomes[name]
            for i in index.split(batch)
        ]
        return torch.cat(parts)

    everything = torch.arange(len(images))
    reference = outcomes(len(images), everything, active_set=False)
    for batch in (1, 8, len(images)):
        assert torch.equal(outcomes(batch, everything, active_set=True), reference)
    assert torch.equal(outcomes(3, everything[5:17], active_set=True), reference[5:17])
    clean = cls(w=2, eps=0.0).resolve(THREAT)
    benign = clean.run(model, images, everything, gallery, seed=0).outcomes[name].mean()
    assert (benign > reference.mean()) if cls.up else (benign < reference.mean())


def test_threads_change_no_outcome(
    model: EmbeddingModel, images: torch.Tensor, tiny: RetrievalData
) -> None:
    labels = torch.from_numpy(tiny.test.labels)
    index, found, threads = torch.arange(len(images)), [], torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            gallery = Gallery(embed(model, images), labels, "N")
            attacked = CandidateUp().resolve(THREAT).run(model, images, index, gallery, seed=0)
            found.append(attacked.outcomes["CA+"])
    finally:
        torch.set_num_threads(threads)
    assert (found[0].mean() - found[1].mean()).abs() < 0.05


@pytest.mark.parametrize(
    ("images", "index", "message"),
    [
        (torch.full((2, 1, 8, 8), 1.5), torch.arange(2), "finite and in"),
        (torch.full((2, 1, 8, 8), torch.nan), torch.arange(2), "finite and in"),
        (torch.rand(2, 1, 8, 8), torch.arange(3), "need as many indices"),
    ],
)
def test_bad_input_is_refused(
    model: EmbeddingModel, images: torch.Tensor, index: torch.Tensor, message: str
) -> None:
    gallery = Gallery(torch.rand(9, 8), torch.arange(9) % 3, "N")
    with pytest.raises(CellError, match=message):
        CandidateUp().resolve(THREAT).run(model, images, index, gallery, seed=0)


def test_bad_galleries_are_refused() -> None:
    with pytest.raises(UserError, match="N labels"):
        Gallery(torch.rand(9, 8), torch.arange(8), "N")
    with pytest.raises(CellError, match="not finite"):
        Gallery(torch.full((2, 3), torch.nan), torch.arange(2), "N")


def test_fields_out_of_range_are_refused_in_python_too(model: EmbeddingModel) -> None:
    gallery = Gallery(torch.rand(9, 8), torch.arange(9) % 3, "N")
    images, index = torch.rand(2, 1, 8, 8), torch.arange(2)
    with pytest.raises(ValueError, match=r"ca\+: w must be int >= 1, got 0"), frozen(model):
        CandidateUp(w=0).resolve(THREAT).run(model, images, index, gallery, seed=0)


@pytest.mark.parametrize(("suite", "moves"), [("strict", True), ("auto", True), ("ers", False)])
@pytest.mark.parametrize("metric", ["N", "E"])
def test_a_candidate_with_the_embedding_of_its_query_is_moved(
    metric: str, suite: str, moves: bool
) -> None:
    """Every image twice: the nearest 1% of a candidate is its double."""
    model = EmbeddingModel(tiny_network().backbone, metric).eval()  # type: ignore[arg-type]
    images = torch.rand(20, 1, 8, 8).repeat(2, 1, 1, 1)
    with torch.no_grad():
        gallery = Gallery(embed(model, images), torch.arange(40) % 20, metric)  # type: ignore[arg-type]
    attack = CandidateDown(suite=suite).resolve(THREAT)  # type: ignore[arg-type]
    index = torch.arange(20)
    with frozen(model):
        found = attack.run(model, images[:20], index, gallery, seed=0)
    moved = (found.perturbed.images - images[:20]).abs().amax((1, 2, 3))
    assert (moved > 0).tolist() == [moves] * 20
    lowered = (found.outcomes["CA-"] > found.clean["CA-"]).sum()
    assert lowered >= 15 if moves else lowered == 0
    assert attack.version_under(metric) == attack.version + moves  # type: ignore[arg-type]
    assert attack.version_under("C") == attack.version


def test_only_an_embedding_that_is_the_querys_is_set_apart() -> None:
    """One bit beside it, the gradient is that of the definition to the last bit."""
    gallery, index = make_gallery("N", torch.float32), torch.tensor([4, 7])
    goal = CandidateDown().goal(gallery, index, seed=0)
    e = goal.queries[:, 0].clone()
    e[1, 0] = torch.nextafter(e[1, 0], torch.tensor(2.0))
    first, later = (goal.value_and_grad(e, step)[1] for step in (0, 1))
    assert later[0].abs().max() == 0 < first[0].abs().max()
    assert torch.equal(first[1], later[1])


@pytest.mark.parametrize(("up", "slope"), [(True, 2), (False, -2)])
def test_at_a_tie_the_hinge_is_active(up: bool, slope: int) -> None:
    """Of the distances 0.5, 1 and 2 to the only query, the second is the candidate's own."""
    query = torch.tensor([[[0.0, 0.0]]])
    distances = torch.tensor([[[0.5, 1.0, 2.0]]])
    sums = torch.tensor([[[0.0, 0.5, 1.5, 3.5]]], dtype=torch.float64)
    goal = CandidateGoal("CA", up, False, 0.0, "E", 3, torch.tensor([[3]]), query, distances, sums)
    loss, gradient = goal.value_and_grad(torch.tensor([[1.0, 0.0]]), 0)
    assert loss.item() == pytest.approx((0.5 if up else 1.0) / 3)  # 1 - 0.5, or 2 - 1
    torch.testing.assert_close(gradient, torch.tensor([[slope / 3, 0.0]]))
