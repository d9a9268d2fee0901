"""The vectorised samplers follow the definitions for each anchor."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlbench.defenses.samplers import SAMPLERS, sample

MARGIN = 0.2


def slow_odds(
    sampler: str, e: torch.Tensor, labels: list[int], a: int
) -> tuple[dict[int, float], dict[int, float]]:
    """Probabilities of the positives and negatives of anchor ``a``, by the definition."""
    d = [(e[a] - x).norm().item() for x in e]
    same = {i for i in range(len(labels)) if labels[i] == labels[a] and i != a}
    other = {i for i in range(len(labels)) if labels[i] != labels[a]}
    p = a + 1
    positives, negatives = {p}, other
    if sampler == "semihard":
        negatives = {n for n in other if d[p] < d[n] < d[p] + MARGIN} or other
    elif sampler == "semihard-robrank":
        negatives = {n for n in other if d[p] < d[n] < d[p] + 1} or other
    elif sampler.startswith("softhard"):
        farthest = max(d[i] for i in same)
        closest = min(d[i] for i in other)
        negatives = {n for n in other if d[n] < farthest} or other
        itself = {a} if sampler == "softhard-robrank" else set()
        positives = {i for i in same if d[i] > closest} or same | itself
    elif sampler == "hardest":
        negatives = {min(other, key=lambda n: d[n])}
    odds = dict.fromkeys(negatives, 1.0)
    if sampler == "distance":
        dim = e.shape[1]
        odds = {n: 1 / (d[n] ** (dim - 2) * (1 - d[n] ** 2 / 4) ** ((dim - 3) / 2)) for n in other}
    total = sum(odds.values())
    return dict.fromkeys(positives, 1 / len(positives)), {n: w / total for n, w in odds.items()}


def make_batch(seed: int, pairs: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (pairs,), generator=generator).repeat_interleave(2)
    e = torch.randn(2 * pairs, 4, generator=generator, dtype=torch.float64)
    e = e + torch.randn(classes, 4, generator=generator, dtype=torch.float64)[labels]
    return torch.nn.functional.normalize(e, dim=1), labels


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), pairs=st.integers(2, 9), classes=st.integers(2, 4))
def test_every_triplet_is_one_the_definition_allows(
    sampler: str, seed: int, pairs: int, classes: int
) -> None:
    e, labels = make_batch(seed, pairs, classes)
    generator = torch.Generator().manual_seed(seed)
    triplets = sample(sampler, e, labels, "N", MARGIN, generator)
    several = len(set(labels.tolist())) > 1
    assert triplets.anchor.tolist() == (list(range(0, 2 * pairs, 2)) if several else [])
    for a, p, n in triplets.stack().tolist():
        positives, negatives = slow_odds(sampler, e, labels.tolist(), a)
        assert p in positives
        assert n in negatives


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_draws_follow_the_definitions_odds(sampler: str) -> None:
    e, labels = make_batch(3, 8, 3)
    generator = torch.Generator().manual_seed(0)
    rounds = 400
    drawn = torch.stack(
        [sample(sampler, e, labels, "N", MARGIN, generator).stack() for _ in range(rounds)]
    )
    for row, a in enumerate(range(0, 16, 2)):
        for column, odds in enumerate(slow_odds(sampler, e, labels.tolist(), a), start=1):
            counts = torch.bincount(drawn[:, row, column], minlength=16).tolist()
            assert {i for i, count in enumerate(counts) if count} <= set(odds)
            chi_square = sum((counts[i] - rounds * p) ** 2 / (rounds * p) for i, p in odds.items())
            free = len(odds) - 1
            assert chi_square <= free + 5 * (2 * free) ** 0.5 + 1e-9  # mean and five deviations


def test_a_batch_of_one_class_has_no_triplets() -> None:
    e, _ = make_batch(0, 4, 2)
    triplets = sample(
        "softhard", e, torch.zeros(8, dtype=torch.long), "N", MARGIN, torch.Generator()
    )
    assert len(triplets) == 0
    assert triplets.stack().shape == (0, 3)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_duplicates_are_harmless(sampler: str) -> None:
    labels = torch.tensor([0, 0, 1, 1])
    triplets = sample(sampler, torch.ones(4, 3), labels, "N", MARGIN, torch.Generator())
    itself = sampler == "softhard-robrank"
    assert triplets.anchor.tolist() == [0, 2]
    assert all(p in ((a, a + 1) if itself else (a + 1,)) for a, p, _ in triplets.stack().tolist())
    assert all(labels[a] != labels[n] for a, _, n in triplets.stack().tolist())


@pytest.mark.parametrize(("pairs", "classes", "share"), [(56, 100, 0.38), (128, 10, 0.04)])
def test_robranks_softhard_makes_anchors_their_own_positives(
    pairs: int, classes: int, share: float
) -> None:
    """As often as its docstring says, where the network separates the classes (CUB, Fashion)."""
    generator = torch.Generator().manual_seed(0)
    own: dict[str, list[float]] = {"softhard": [], "softhard-robrank": []}
    for _ in range(40):
        labels = torch.randint(0, classes, (pairs,), generator=generator).repeat_interleave(2)
        e = torch.eye(classes)[labels] + 0.01 * torch.rand(
            len(labels), classes, generator=generator
        )
        e = torch.nn.functional.normalize(e, dim=1)
        for sampler, shares in own.items():
            t = sample(sampler, e, labels, "N", MARGIN, generator)
            shares.append(float((t.positive == t.anchor).double().mean()))
    assert sum(own["softhard"]) == 0
    assert sum(own["softhard-robrank"]) / 40 == pytest.approx(share, abs=0.015)
