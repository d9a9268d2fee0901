"""The certificate under Gaussian smoothing, its attack, and the pieces of both."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from dmlbench.attacks.base import ATTACKS, Attack, Attacked, Gallery
from dmlbench.attacks.certified import ABOVE, ATTACKED, CERTIFIED, levels
from dmlbench.attacks.engine.bisectors import margin
from dmlbench.attacks.engine.smoothing import (
    MeanOverNoise,
    mean_error,
    noisy,
    radius,
    smoothed,
)
from dmlbench.common.errors import CellError, UserError
from dmlbench.compute.embedding import EmbeddingModel, embed
from dmlbench.core import spec
from dmlbench.core.protocol import Threat
from dmlbench.datasets.base import RetrievalData
from dmlbench.evaluation.cuda_graphs import Replayed
from dmlbench.metrics.relevance import Lists, Relevance
from tests.graphs import recorder

THREAT = Threat(eps=0.1, alpha=0.03, steps=6, suite="auto")


def resolved(**fields: Any) -> Attack:
    return ATTACKS.get("certified")(**fields).resolve(THREAT)


def lipschitz(sigma: float) -> float:
    """The Lipschitz constant of an embedding under noise, as RetrievalGuard bounds it."""
    return math.sqrt(2 / math.pi) / sigma


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=1)


def slow_margin(gallery: Gallery, e: torch.Tensor, query: int, item: int | None) -> float:
    """Over all pairs of an own item and another one that the query sees."""
    one = torch.tensor([query])
    answers = set(gallery.relevance.positives.of(one)[0].tolist()) if item is None else {item}
    hidden, x = set(gallery.relevance.excluded.of(one)[0].tolist()), gallery.embeddings.double()
    best = -math.inf
    for a in answers - hidden - {-1}:
        least = math.inf
        for b in set(range(len(x))) - answers - hidden:
            far, near = (e - x[b]).norm() ** 2, (e - x[a]).norm() ** 2
            least = min(least, float((far - near) / (2 * (x[a] - x[b]).norm())))
        best = max(best, least)
    return best


@pytest.mark.parametrize("of", ["class", "item"])
@pytest.mark.parametrize("listed", [False, True])
def test_the_margin_is_the_slow_one(of: str, listed: bool) -> None:
    x, index = unit(24, 5), torch.arange(0, 24, 3)
    relevance: Any = None
    if listed:  # few answers, so that all of them are looked at; one query has none
        answers = Lists.of_queries(
            [[] if q == 3 else [(q + 1) % 24, (q + 7) % 24] for q in range(24)]
        )
        hidden = Lists.of_queries([[q, (q + 7) % 24] if q % 2 else [q] for q in range(24)])
        relevance = Relevance(answers, hidden)
    gallery = Gallery(x, torch.arange(24) % 6, "N", relevance=relevance)
    e = 0.8 * x[index].double() + 0.1 * unit(len(index), 5, seed=1).double()
    item = gallery.nearest(index, 1)[:, 0] if of == "item" else None
    found = margin(gallery, e, index, item)
    for row, query in enumerate(index.tolist()):
        only = None if item is None else int(item[row])
        assert found[row].item() == pytest.approx(slow_margin(gallery, e[row], query, only))
    if not listed:
        right = gallery.recall_at_1(e.float(), index) > 0
        assert of == "item" or torch.equal(found > 0, right)


@given(seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_the_bisector_is_never_nearer_than_half_the_difference_of_distances(seed: int) -> None:
    """The bound of RetrievalGuard: (d_2 - d_1) / 2."""
    x = unit(12, 4, seed=seed).double()
    gallery, index = Gallery(x, torch.arange(12) % 4, "N"), torch.arange(12)
    e = 0.7 * unit(12, 4, seed=seed + 1).double()
    d = gallery.distances_seen(e, index)
    own = gallery.labels[:, None] == gallery.labels
    nearest = d.masked_fill(~own, torch.inf).amin(1)
    half = (d.masked_fill(own, torch.inf).amin(1) - nearest) / 2
    found = margin(gallery, e, index)
    assert (found >= half - 1e-12)[half > 0].all()


def test_two_items_in_one_place_certify_nothing() -> None:
    x = torch.tensor([[1.0, 0], [1.0, 0], [0, 1.0], [1.0, 0]])
    gallery = Gallery(x, torch.tensor([0, 1, 1, 0]), "N")
    assert margin(gallery, x[:1].double(), torch.tensor([0]))[0] == 0
    alone = Gallery(x, torch.zeros(4, dtype=torch.int64), "N")
    assert margin(alone, x[:1].double(), torch.tensor([0]))[0] == math.inf
    assert margin(alone, x[:0].double(), torch.arange(0)).shape == (0,)


def test_the_radius_is_that_of_the_normal_distribution() -> None:
    m = torch.linspace(-0.2, 0.999, 40, dtype=torch.float64)
    found = radius(m, 0.3)
    expected = 0.3 * norm.ppf((1 + np.clip(m.numpy(), 0, None)) / 2)
    assert found.numpy() == pytest.approx(expected)
    assert (found >= m.clamp(min=0) / lipschitz(0.3) - 1e-12).all()
    assert radius(torch.tensor([1.0]), 0.3).isinf()


@pytest.mark.parametrize("spread", [0.05, 0.5, 5.0])
def test_the_error_of_a_mean_is_within_its_bound(spread: float) -> None:
    """Points on a circle around a direction: 400 means of 60, at a confidence of 90%."""
    generator = torch.Generator().manual_seed(0)
    angle = spread * torch.randn(400, 60, dtype=torch.float64, generator=generator)
    mean = torch.stack([angle.cos(), angle.sin()], -1).mean(1)
    true = torch.tensor([math.exp(-(spread**2) / 2), 0.0])
    off = (mean - true).norm(dim=1)
    bound = mean_error(mean.norm(dim=1), 60, 0.9)
    assert (off <= bound).double().mean() >= 0.97  # Bernstein's is not tight
    assert bound.max() <= 0.42
    if spread < 0.1:  # where all points are near each other the mean is known better
        assert bound.max() < 0.25


def test_the_bound_falls_with_samples_and_rises_with_confidence() -> None:
    length = torch.linspace(0, 1, 11, dtype=torch.float64)
    by_samples = [mean_error(length, n, 0.999) for n in (10, 100, 1000, 100_000)]
    for more, fewer in zip(by_samples[1:], by_samples, strict=False):
        assert (more < fewer).all()
    assert (mean_error(length, 100, 0.99999) > by_samples[1]).all()
    assert (by_samples[2].diff() <= 1e-12).all()  # a longer mean is less scattered
    assert by_samples[3].max() < 0.013


class Threshold(torch.nn.Module):
    """f(x) = (1, 0) where w . (x - 1/2) > 0, else (-1, 0): of h all is known by PHI."""

    metric = "N"

    def __init__(self, w: torch.Tensor) -> None:
        super().__init__()
        self.w = w

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side = ((x - 0.5).flatten(1) @ self.w > 0).float()
        return torch.stack([2 * side - 1, 0 * side], 1)


def test_of_a_threshold_the_certificate_is_the_exact_distance() -> None:
    """Of h = (2 p - 1, 0), p = PHI(w . x / s), the top-1 is right as long as w . x > 0."""
    sigma, w = 0.5, unit(1, 16)[0].double()
    gallery = Gallery(
        torch.tensor([[1.0, 0], [1.0, 0], [-1.0, 0]], dtype=torch.float64),
        torch.tensor([0, 0, 1]),
        "N",
    )
    generator = torch.Generator().manual_seed(1)
    for distance in (0.05, 0.3, 0.8):
        p = norm.cdf(distance / sigma)
        h = torch.tensor([[2 * p - 1, 0]], dtype=torch.float64)
        index = torch.tensor([0])
        found = float(radius(margin(gallery, h, index), sigma))
        assert found == pytest.approx(distance)
        linear = float(margin(gallery, h, index)) / lipschitz(sigma)
        assert 0 < linear < found
        ways = torch.randn(200, 16, dtype=torch.float64, generator=generator)
        ways = torch.cat([ways, -w[None], w[None]])
        ways = ways / ways.norm(dim=1, keepdim=True)
        for length, safe in ((0.999 * found, True), (1.001 * found, False)):
            moved = norm.cdf((distance + length * (ways @ w).numpy()) / sigma)
            e = torch.tensor(np.stack([2 * moved - 1, 0 * moved], 1))
            right = gallery.recall_at_1(e, torch.zeros(len(e), dtype=torch.int64)) > 0
            assert bool(right.all()) == safe


def test_sampled_certificates_of_a_threshold_are_below_the_exact_distance() -> None:
    w = unit(1, 16)[0]
    images = (0.5 + torch.linspace(-0.1, 0.5, 30)[:, None] * w).view(30, 1, 4, 4).clamp(0, 1)
    x = torch.tensor([[1.0, 0], [1.0, 0], [-1.0, 0]])
    gallery = Gallery(
        x,
        torch.tensor([0, 0, 1]),
        "N",
        queries=x[:1].expand(30, 2),
        relevance=Relevance(
            Lists(torch.tensor([[0, 1]]), torch.zeros(30, dtype=torch.int64)),
            Lists(torch.tensor([[-1]]), torch.zeros(30, dtype=torch.int64)),
        ),
        apart=True,
    )
    attack = resolved(sigma=0.25, samples=400, judges=100, draws=4, steps=2)
    found = attack.run(Threshold(w), images, torch.arange(30), gallery, seed=0)
    exact = ((images - 0.5).flatten(1) @ w).double()
    certified, attacked = found.outcomes[CERTIFIED], found.outcomes[ATTACKED]
    assert (certified <= exact.clamp(min=0) + 1e-6).all()
    assert (certified > 0)[exact > 0.15].all()
    assert (certified[exact > 0.15] > 0.35 * exact[exact > 0.15]).all()
    assert (attacked >= certified).all()
    assert (attacked[exact < -0.05] == 0).all()


def test_a_smoothed_embedding_is_the_mean_of_noisy_ones(
    model: EmbeddingModel, images: torch.Tensor
) -> None:
    index = torch.tensor([4, 9, 2])
    found = smoothed(model, images[index], index, 0, "x", 0.2, 11)
    alone = smoothed(model, images[9:10], torch.tensor([9]), 0, "x", 0.2, 11)
    torch.testing.assert_close(alone[0], found[1], atol=1e-7, rtol=0)
    assert found.norm(dim=1).max() < 1
    many = smoothed(model, images[index], index, 0, "x", 0.2, 800)
    again = smoothed(model, images[index], index, 1, "x", 0.2, 800)
    off = (many - again).norm(dim=1)
    assert off.max() < 2 * mean_error(many.norm(dim=1), 800, 0.99).min()
    assert (off > 0).all()


@pytest.mark.parametrize("replayed", [False, True])
def test_the_gradient_of_the_mean_is_the_mean_gradient(
    model: EmbeddingModel, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch, replayed: bool
) -> None:
    """Also through CUDA graphs, where each pass overwrites what the one before has kept."""
    network: torch.nn.Module = model
    if replayed:
        monkeypatch.setattr(torch.cuda, "make_graphed_callables", recorder(6))
        network = Replayed(model, images[:6])
    mean = MeanOverNoise(network, images, 0, "x", 0.2, 10)
    assert len(mean.noise) == 10
    x, de = images[:5].clone().requires_grad_(), torch.randn(5, 8)
    e = mean(x)
    (dx,) = torch.autograd.grad(e, x, de)
    y = images[:5].clone().requires_grad_()
    expected = sum(model(y + z) for z in mean.noise) / 10
    (dy,) = torch.autograd.grad(expected, y, de)
    torch.testing.assert_close(e.detach(), expected.detach(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(dx, dy, atol=1e-6, rtol=1e-4)


def learned(tiny: RetrievalData, sigma: float) -> EmbeddingModel:
    """A linear network that was trained for a second, on noisy images."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16))
    model = EmbeddingModel(layers, "N", same_in_training=True)
    x = tiny.evaluation_pixels(torch.from_numpy(tiny.train.images))
    alike = torch.from_numpy(tiny.train.labels)[:, None] == torch.from_numpy(tiny.train.labels)
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        e = model(x + sigma * torch.randn_like(x))
        loss = ((e @ e.T - 2.0 * alike + 1) ** 2).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def trained(tiny: RetrievalData) -> EmbeddingModel:
    return learned(tiny, 0.25)


@pytest.fixture(scope="module")
def learned_gallery(trained: EmbeddingModel, images: torch.Tensor, tiny: RetrievalData) -> Gallery:
    return Gallery(embed(trained, images), torch.from_numpy(tiny.test.labels), "N")


SMALL = {"samples": 300, "judges": 100, "draws": 6, "steps": 6, "confidence": 0.99}


@pytest.fixture(scope="module")
def found(trained: EmbeddingModel, images: torch.Tensor, learned_gallery: Gallery) -> Attacked:
    return resolved(**SMALL).run(trained, images, torch.arange(40), learned_gallery, seed=0)


@pytest.mark.parametrize(
    ("of", "apart"), [pytest.param("class", False, marks=pytest.mark.slow), ("item", True)]
)
def test_a_smoothed_gallery_holds_the_means_of_noisy_copies(
    trained: EmbeddingModel, images: torch.Tensor, tiny: RetrievalData, of: str, apart: bool
) -> None:
    """They are drawn once, and have unit length; everything else is unchanged."""
    labels, index = torch.from_numpy(tiny.test.labels), torch.arange(10)
    looks: list[int] = []

    def at(rows: torch.Tensor) -> torch.Tensor:
        looks.append(len(rows))
        return images[rows]

    clean, given = embed(trained, images), {}
    items, queries = torch.arange(len(images)), images
    if apart:  # every fourth image is a query and no item
        asking = items % 4 == 0
        answers = [(labels[~asking] == y).nonzero()[:, 0].tolist() for y in labels[asking]]
        hidden = Lists.of_queries([[] for _ in answers])
        relevance = Relevance(Lists.of_queries(answers), hidden)
        given = {"queries": clean[asking], "relevance": relevance, "apart": True}
        items, queries, labels = items[~asking], images[asking], labels[~asking]
    plain = Gallery(clean[items], labels, "N", images=lambda rows: at(items[rows]), **given)
    attack = resolved(**SMALL, of=of, gallery_samples=20)
    ours = [attack.run(trained, queries[i], i, plain, seed=3) for i in index.split(5)]
    assert sum(looks) == len(items)
    means = []
    for number, i in enumerate(items.tolist()):
        copies = noisy(images[[i]], torch.tensor([number]), 3, "certified gallery", 0.25, 20)
        means.append(torch.stack([trained(x)[0] for x in copies]).mean(0))
    e = torch.nn.functional.normalize(torch.stack(means), dim=1)
    other = dataclasses.replace(plain, embeddings=e, _shared={})
    slow = resolved(**SMALL, of=of).run(trained, queries[:10], index, other, seed=3)
    for name, values in slow.outcomes.items():
        found = torch.cat([one.outcomes[name] for one in ours])
        torch.testing.assert_close(found, values, atol=1e-5, rtol=1e-4)
    unseen = dataclasses.replace(plain, images=None, _shared={})
    with pytest.raises(CellError, match="needs the images of the gallery"):
        attack.run(trained, queries[:2], index[:2], unseen, seed=3)


def test_no_query_is_broken_where_it_is_certified(found: Attacked) -> None:
    certified, attacked = found.outcomes[CERTIFIED], found.outcomes[ATTACKED]
    assert (certified <= attacked + 1e-6).all()
    assert (certified > 0).sum() > 20
    assert ((attacked > 0) & (attacked < 2)).sum() > 20  # it does break them
    assert (certified[attacked == 0] == 0).all()
    assert found.observed[ABOVE].sum() == 0
    assert found.observed["monte_carlo_error"].max() < 0.25
    shares = [
        [float((value > length).double().mean()) for length in (0, 0.1, 0.3, 0.9)]
        for value in (certified, attacked)
    ]
    for curve in shares:
        assert curve == sorted(curve, reverse=True)
        assert curve[0] > curve[-1]
    known = torch.tensor([0.0, *levels(2.0)])
    assert torch.isin(attacked.float(), known).all()
    assert found.perturbed.forward_passes <= found.perturbed.full_forward_passes
    assert found.perturbed.passes <= found.perturbed.full_passes


def test_random_directions_within_the_certificate_break_nothing(
    trained: EmbeddingModel, images: torch.Tensor, learned_gallery: Gallery, found: Attacked
) -> None:
    """Images need not stay in [0, 1]; judged by many copies."""
    index = (found.outcomes[CERTIFIED] > 0).nonzero()[:12, 0]
    reach = 0.999 * found.outcomes[CERTIFIED][index].float()
    for seed in range(2):
        way = unit(len(index), 64, seed=seed).view(-1, 1, 8, 8)
        moved = images[index] + reach.view(-1, 1, 1, 1) * way
        e = smoothed(trained, moved, index, seed, "check", 0.25, 500)
        assert (learned_gallery.recall_at_1(e.float(), index) == 100).all()


def test_neither_batch_order_nor_active_set_change_it(
    trained: EmbeddingModel, images: torch.Tensor, learned_gallery: Gallery
) -> None:
    attack = resolved(samples=24, judges=8, draws=2, steps=3, confidence=0.5)

    def run(rows: torch.Tensor, active_set: bool = True) -> torch.Tensor:
        found = attack.run(
            trained, images[rows], rows, learned_gallery, seed=0, active_set=active_set
        )
        both = torch.stack([found.outcomes[CERTIFIED], found.outcomes[ATTACKED]], 1)
        return torch.cat([found.perturbed.images.flatten(1).double(), both], 1)

    index, order = torch.arange(0, 40, 4), torch.randperm(10)
    whole = run(index)
    assert torch.equal(whole, run(index, active_set=False))
    parts = torch.cat([run(index[rows]) for rows in order.split(4)])
    torch.testing.assert_close(parts, whole[order], atol=1e-12, rtol=0)


def test_the_item_variant_certifies_the_item(
    trained: EmbeddingModel, images: torch.Tensor, learned_gallery: Gallery, found: Attacked
) -> None:
    index = torch.arange(0, 40, 4)
    attack = resolved(of="item", **SMALL | {"steps": 2})
    one = attack.run(trained, images[index], index, learned_gallery, seed=0)
    assert (one.outcomes[CERTIFIED] <= one.outcomes[ATTACKED] + 1e-6).all()
    assert one.outcomes[CERTIFIED].mean() < found.outcomes[CERTIFIED][index].mean()


def test_what_cannot_be_certified_is_refused(
    model: EmbeddingModel, images: torch.Tensor, gallery: Gallery
) -> None:
    for text, words in (
        ("norm=linf", "norm must be l2, got 'linf'"),
        ("restarts=2", "restarts are not for certified"),
        ("optimizer=pgd", "optimizer must be apgd"),
        ("confidence=1", "confidence must be below 1, got 1"),
        ("sigma=0", "sigma must be float > 0, got 0"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            spec.parse(f"certified:{text}", ATTACKS)
        assert "\n" not in str(caught.value)
    unbounded = dataclasses.replace(gallery, metric="E")
    with pytest.raises(CellError, match="those of E have any length"):
        resolved().run(model, images[:2], torch.arange(2), unbounded, seed=0)
    dark = dataclasses.replace(gallery, embeddings=gallery.embeddings.clone(), _shared={})
    dark.embeddings[3] = 0  # its bisectors do not go through the origin
    with pytest.raises(CellError, match="length 1, and that of item 3 has length 0: leave that"):
        resolved().run(model, images[:2], torch.arange(2), dark, seed=0)
    assert (resolved().eps, resolved(sigma=0.5).eps, resolved().steps) == (2.0, 4.0, 20)
    assert spec.shown(resolved(eps=1.5, samples=10)).startswith("certified:eps=1.5,alpha=3,")
    assert levels(0) == [0.0]


@pytest.mark.parametrize(("confidence", "queries"), [(0.999, 100), (0.999, 2000), (0.95, 100)])
def test_more_contradicted_certificates_than_chance_explains_are_flagged(
    confidence: float, queries: int
) -> None:
    """One of 100 queries at 99.9% is no sign: a tenth of all honest rows have one."""
    attack: Any = resolved(confidence=confidence)
    raised = []
    for broken in range(queries + 1):
        outcomes = {CERTIFIED: np.full(queries + 7, 0.5), ATTACKED: np.full(queries + 7, 0.7)}
        outcomes[ATTACKED][:broken] = 0.4
        for values in outcomes.values():
            values[queries:] = np.nan  # not attacked
        flags = attack.flags(outcomes, {})
        assert bool(flags) == (binom.sf(broken - 1, queries, 1 - confidence) < 0.01)
        raised += [broken] if flags else []
    least = raised[0]
    assert 1 < least < 20
    assert raised == list(range(least, queries + 1))
    assert flags[0].name == "certificate"
    assert "broke 100.00% of the queries" in flags[0].says
