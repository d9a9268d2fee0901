"""Retrieval metrics equal slow versions that follow the definitions item by item."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score

from dmlbench.metrics import bootstrap, clustering
from dmlbench.metrics import retrieval as module
from dmlbench.metrics.bootstrap import bootstrap_mean, bootstrap_median
from dmlbench.metrics.clustering import kmeans_nmi, normalized_mutual_information
from dmlbench.metrics.collapse import chance_recall, effective_rank, is_collapsed, mean_cosine
from dmlbench.metrics.distance import pairwise, rowwise, rowwise_gradient
from dmlbench.metrics.ranks import percentile_rank
from dmlbench.metrics.relevance import Relevance, class_members
from dmlbench.metrics.retrieval import retrieval
from tests.twins import slow_metrics


def slow_distance(a: torch.Tensor, b: torch.Tensor, metric: str) -> float:
    if metric == "C":
        return 1 - sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))
    return math.dist(a.tolist(), b.tolist())


def slow_scores(
    query: torch.Tensor, own: int, gallery: torch.Tensor, labels: list[int], metric: str
) -> dict[str, float] | None:
    """One query by the definitions, item by item."""
    distance = [slow_distance(query, x, metric) for x in gallery]
    others = [i for i in range(len(labels)) if i != own]
    positives = sorted(distance[i] for i in others if labels[i] == labels[own])
    negatives = [distance[i] for i in others if labels[i] != labels[own]]
    return slow_metrics(positives, negatives)


@pytest.mark.parametrize("metric", ["N", "E", "C"])
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 30),
    classes=st.integers(1, 5),
    block=st.sampled_from([1, 50, 10**6]),
)
def test_retrieval_equals_its_definition(
    metric: str, seed: int, n: int, classes: int, block: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # a coarse grid: exact ties and duplicates are common, and every distance is exact
    gallery = torch.randint(0, 3, (n, 2), generator=generator).double()
    labels = torch.randint(0, classes, (n,), generator=generator)
    index = torch.randperm(n, generator=generator)[: max(1, n // 2)]
    queries = torch.randint(0, 3, (len(index), 2), generator=generator).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_CELLS", block)
        found = retrieval(queries, index, gallery, Relevance.leave_one_out(labels), metric)  # type: ignore[arg-type]
    for row, own in enumerate(index.tolist()):
        expected = slow_scores(queries[row], own, gallery, labels.tolist(), metric)
        assert bool(found.valid[row]) == (expected is not None)
        for name, value in found.scores.items():
            if expected is None:
                assert math.isnan(value[row])
            else:
                assert value[row].item() == pytest.approx(expected[name], abs=1e-9), name


def test_a_query_alone_in_its_class_is_left_out() -> None:
    gallery = torch.tensor([[0.0], [1.0], [5.0]])
    found = retrieval(
        gallery, torch.arange(3), gallery, Relevance.leave_one_out(torch.tensor([4, 4, 9])), "E"
    )
    assert found.valid.tolist() == [True, True, False]
    assert found.scores["R@1"].nanmean() == 100


def test_the_own_entry_is_left_out_by_index_even_with_duplicates() -> None:
    # item 0 and 1 are the same image with other labels; dropping "the nearest" would drop either
    gallery = torch.tensor([[0.0], [0.0], [1.0], [9.0]])
    labels = torch.tensor([0, 1, 0, 1])
    found = retrieval(gallery, torch.arange(4), gallery, Relevance.leave_one_out(labels), "E")
    assert found.scores["R@1"].tolist() == [0, 0, 0, 0]


def test_a_constant_embedding_gains_nothing_from_ties() -> None:
    gallery = torch.zeros(50, 4)
    relevance = Relevance.leave_one_out(torch.arange(50) % 5)
    found = retrieval(gallery, torch.arange(50), gallery, relevance, "N")
    assert found.scores["R@1"].max() == 0
    for metric in ("N", "E", "C"):
        one = torch.nn.functional.normalize(torch.randn(1, 512), dim=1)
        noisy = one + 1e-8 * torch.randn(50, 512)  # what is left of a collapsed model
        rounded = retrieval(noisy, torch.arange(50), noisy, relevance, metric)
        assert rounded.scores["R@1"].max() == 0


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_class_members_list_every_position_once(labels: list[int]) -> None:
    members = class_members(torch.tensor(labels), max(labels) + 1)
    for label, row in enumerate(members.tolist()):
        assert [i for i in row if i >= 0] == [i for i, y in enumerate(labels) if y == label]


@pytest.mark.parametrize("metric", ["N", "E", "C"])
def test_distances_equal_their_definition(metric: str) -> None:
    a = torch.nn.functional.normalize(torch.randn(6, 5, dtype=torch.float64), dim=1)
    b = torch.nn.functional.normalize(torch.randn(7, 5, dtype=torch.float64), dim=1)
    expected = torch.tensor([[slow_distance(x, y, metric) for y in b] for x in a])
    torch.testing.assert_close(pairwise(a, b, metric).float(), expected)  # type: ignore[arg-type]
    torch.testing.assert_close(
        rowwise(a[:, None], b, metric).float(),  # type: ignore[arg-type]
        expected,
    )
    x = a.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(rowwise(x, b[:6], metric).sum(), x)  # type: ignore[arg-type]
    torch.testing.assert_close(rowwise_gradient(a, b[:6], metric), gradient)  # type: ignore[arg-type]


def test_the_gradient_of_a_vanishing_distance_is_zero() -> None:
    a = torch.ones(2, 3)
    assert rowwise_gradient(a, a.clone(), "N").abs().max() == 0


@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.data())
def test_percentile_rank_is_the_mean_place_over_tie_orders(
    distances: list[int], data: st.DataObject
) -> None:
    own = data.draw(st.integers(0, len(distances) - 1))
    others = [d for i, d in enumerate(distances) if i != own]
    closer = sum(d < distances[own] for d in others)
    tied = sum(d == distances[own] for d in others)
    rank = percentile_rank(torch.tensor(closer), torch.tensor(tied), len(others)).item()
    best, worst = closer, closer + tied  # of all orders of the tied items
    assert rank == pytest.approx(100 * (best + worst) / 2 / len(others))
    assert 0 <= rank <= 100


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=2, max_size=60),
)
def test_nmi_equals_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, dtype=np.int64).T
    expected = 100 * normalized_mutual_info_score(a, b)
    assert normalized_mutual_information(a, b) == pytest.approx(expected, abs=1e-6)


def test_kmeans_finds_separate_clusters_and_is_repeatable() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 30)
    points = (np.eye(8)[labels] + generator.normal(0, 0.05, (120, 8))).astype(np.float32)
    assert kmeans_nmi(points, labels).value == pytest.approx(100)
    noise = generator.normal(size=(300, 8)).astype(np.float32)
    classes = generator.integers(0, 5, 300)
    assert kmeans_nmi(noise, classes) == kmeans_nmi(noise * 3, classes)
    assert kmeans_nmi(noise, classes).value < 20


def test_nmi_is_that_of_the_start_with_the_least_inertia() -> None:
    """Against scikit-learn's inertia and NMI of each start, on data where the starts differ."""
    generator = np.random.default_rng(1)
    labels = np.repeat(np.arange(12), 15)
    points = (generator.normal(size=(12, 6))[labels] + generator.normal(0, 0.4, (180, 6))).astype(
        np.float32
    )
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    starts = []
    for seed in range(clustering.KMEANS_SEED, clustering.KMEANS_SEED + clustering.STARTS):
        centres, clusters, inertia = clustering.kmeans(unit, 12, seed)
        assert centres.shape == (12, 6)
        centers = [unit[clusters == c].mean(0) for c in clusters]
        slow = sum(((x - c) ** 2).sum() for x, c in zip(unit, centers, strict=True))
        assert inertia == pytest.approx(slow, rel=0.02)  # centroids are of the step before
        starts.append((inertia, 100 * normalized_mutual_info_score(clusters, labels)))
    found = kmeans_nmi(points, labels)
    values = [value for _, value in starts]
    assert found.value == pytest.approx(min(starts)[1], abs=1e-6)
    assert (found.low, found.high) == pytest.approx((min(values), max(values)), abs=1e-6)
    assert found.low < found.high
    assert found.starts == clustering.STARTS
    assert kmeans_nmi(np.ones((50, 3), np.float32), np.arange(50) % 5).low == 0  # all alike


def test_large_data_get_fewer_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    points, labels = np.random.default_rng(0).random((40, 3), np.float32), np.arange(40) % 4
    monkeypatch.setattr(clustering, "MOST_WORK", 2 * 40 * 4)
    assert kmeans_nmi(points, labels).starts == 2
    monkeypatch.setattr(clustering, "MOST_WORK", 1)
    assert kmeans_nmi(points, labels).starts == 1


def test_collapse_indicators_equal_their_definition() -> None:
    e = torch.randn(12, 5, dtype=torch.float64)
    pairs = [(i, j) for i in range(12) for j in range(12) if i != j]
    cosine = torch.nn.functional.cosine_similarity
    expected = np.mean([cosine(e[i], e[j], dim=0).item() for i, j in pairs])
    assert float(mean_cosine(e)) == pytest.approx(expected)
    share = np.linalg.svd(e.numpy(), compute_uv=False)
    share = share / share.sum()
    assert effective_rank(e) == pytest.approx(np.exp(-sum(share * np.log(share))))
    assert effective_rank(torch.ones(9, 5)) == pytest.approx(1, abs=1e-6)
    assert effective_rank(torch.eye(5)) == pytest.approx(5)


def test_chance_and_collapse() -> None:
    assert chance_recall(Relevance.leave_one_out(torch.arange(1000) % 10), 1000) == pytest.approx(
        100 * 99 / 999
    )
    assert chance_recall(Relevance.leave_one_out(torch.tensor([0, 0, 1])), 3) == pytest.approx(50)
    assert is_collapsed(11.9, 10, mean_cosine=0.5)
    assert not is_collapsed(76.8, 10, mean_cosine=0.998)
    assert is_collapsed(12.1, 10, mean_cosine=0.99999)


def test_bootstrap_is_seeded_leaves_out_nan_and_covers() -> None:
    generator = np.random.default_rng(0)
    sample = generator.normal(10, 2, 400)
    found = bootstrap_mean(np.append(sample, np.nan))
    assert found == bootstrap_mean(sample)
    assert found.n == 400
    assert found.low is not None
    assert found.high is not None
    half = 1.96 * sample.std(ddof=1) / 20
    assert found.low == pytest.approx(found.value - half, abs=0.03)
    assert found.high == pytest.approx(found.value + half, abs=0.03)
    hits = 0
    for _ in range(60):
        one = bootstrap_mean(generator.normal(0, 1, 50))
        hits += one.low < 0 < one.high  # type: ignore[operator]
    assert 51 <= hits <= 60
    with pytest.raises(ValueError, match="no value"):
        bootstrap_mean([float("nan")])


@pytest.mark.parametrize("n", [1, 2, 7, 100, 1000, 1001, 70_000])
@pytest.mark.parametrize(
    ("interval", "statistic"), [(bootstrap_mean, np.mean), (bootstrap_median, np.median)]
)
def test_the_bootstrap_is_the_loop_over_resamples_to_the_bit(
    n: int, interval: Any, statistic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", resamples := 1000 if n < 10_000 else 9)
    sample = np.random.default_rng(n).normal(3, 0.01, n)
    generator = np.random.default_rng(bootstrap.SEED)
    drawn = [statistic(sample[generator.integers(n, size=n)]) for _ in range(resamples)]
    tail = 100 * (1 - bootstrap.LEVEL) / 2
    found = interval(sample)
    assert [found.low, found.high] == list(np.percentile(drawn, [tail, 100 - tail]))
