"""The losses of metric learning against explicit loops over their formulas."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from dmlbench.common.errors import UserError
from dmlbench.datasets.base import RetrievalData
from dmlbench.defenses.losses import LOSSES
from dmlbench.defenses.none import NoDefense
from dmlbench.metrics.distance import Metric
from dmlbench.models.small import C2F2
from tests.steps import THREAT, make_batch, mined


def slow_contrastive(e: torch.Tensor, labels: torch.Tensor) -> float:
    """Hadsell et al., CVPR 2006: d for pairs of a class, max(0, 1 - d) for others, each a mean
    over the pairs that are not zero.
    """
    same, other = [], []
    for i in range(len(e)):
        for j in range(len(e)):
            d = float((e[i] - e[j]).norm())
            if i != j and labels[i] == labels[j] and d > 0:
                same.append(d)
            if labels[i] != labels[j] and d < 1:
                other.append(1 - d)
    return sum(same) / max(1, len(same)) + sum(other) / max(1, len(other))


def slow_multi_similarity(e: torch.Tensor, labels: torch.Tensor) -> float:
    """Wang et al., CVPR 2019, with alpha = 2, beta = 50, lambda = 0.5."""
    total = 0.0
    for i in range(len(e)):
        s = [float(torch.nn.functional.cosine_similarity(e[i], x, dim=0)) for x in e]
        same = [j for j in range(len(e)) if j != i and labels[j] == labels[i]]
        other = [j for j in range(len(e)) if labels[j] != labels[i]]
        total += math.log(1 + sum(math.exp(-2 * (s[j] - 0.5)) for j in same)) / 2
        total += math.log(1 + sum(math.exp(50 * (s[j] - 0.5)) for j in other)) / 50
    return total / len(e)


def slow_proxy_anchor(e: torch.Tensor, labels: torch.Tensor, proxies: torch.Tensor) -> float:
    """Kim et al., CVPR 2020, with alpha = 32 and delta = 0.1."""
    unit = torch.nn.functional.normalize(proxies, dim=1)
    s = torch.nn.functional.normalize(e, dim=1) @ unit.T
    present, positive, negative = set(labels.tolist()), 0.0, 0.0
    for k in range(len(proxies)):
        own = [float(s[i, k]) for i in range(len(e)) if labels[i] == k]
        rest = [float(s[i, k]) for i in range(len(e)) if labels[i] != k]
        positive += math.log(1 + sum(math.exp(-32 * (x - 0.1)) for x in own))
        negative += math.log(1 + sum(math.exp(32 * (x + 0.1)) for x in rest))
    return positive / len(present) + negative / len(proxies)


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "triplet"])
@pytest.mark.parametrize("metric", ["N", "E"])
def test_other_losses_are_their_papers(tiny: RetrievalData, loss: str, metric: Metric) -> None:
    torch.manual_seed(1)
    network = C2F2(dim=8, metric=metric).build(1, 8).train()
    batch = make_batch(network, tiny)
    defense = NoDefense(loss=loss).resolve(THREAT, metric)
    companion = defense.companion(5, 8, metric)
    assert companion is not None
    with torch.no_grad():
        e = network(batch.images).double()
    drawn = mined(defense, "random", batch)
    step = defense.step(network, dataclasses.replace(batch, companion=companion), {})
    assert step.loss is not None
    if loss == "contrastive":
        expected = slow_contrastive(e, batch.labels)
    elif loss == "multi-similarity":
        expected = slow_multi_similarity(e, batch.labels)
    elif loss == "proxy-anchor":
        expected = slow_proxy_anchor(e, batch.labels, companion.proxies.detach().double())
    elif loss == "margin":  # Wu et al., ICCV 2017: alpha = 0.2, beta = 1.2
        terms = []
        for a, p, n in drawn.stack().tolist():
            terms += [max(0, float((e[a] - e[p]).norm()) - 1.2 + 0.2)]
            terms += [max(0, 1.2 - float((e[a] - e[n]).norm()) + 0.2)]
        expected = sum(terms) / sum(t > 0 for t in terms)
    elif loss == "snr":  # Yuan et al., CVPR 2019, with RobRank's margin and regulariser
        terms, centres = [], []
        for a, p, n in drawn.stack().tolist():
            noise = float(((e[a] - e[p]).var() - (e[a] - e[n]).var()) / e[a].var())
            terms += [max(0, noise + 0.2)]
            centres += [abs(float(e[a].sum()))]
        expected = sum(terms) / sum(t > 0 for t in terms) + 0.005 * sum(centres) / len(centres)
    else:  # Sohn, NeurIPS 2016: softmax of an anchor's positive among other classes' positives
        pairs = [(batch.labels == y).nonzero()[:2, 0] for y in batch.labels.unique()]
        a, p = (e[torch.stack(pairs)[:, side]] for side in (0, 1))
        expected = float(-(a @ p.T).log_softmax(dim=1).diagonal().mean())
    assert step.loss.item() == pytest.approx(expected, rel=1e-4)


def test_a_loss_takes_only_what_it_reads() -> None:
    with pytest.raises(UserError, match="margin is the triplet loss's"):
        NoDefense(loss="contrastive", margin=0.3).resolve(THREAT, "N")
    with pytest.raises(UserError, match="takes no sampler"):
        NoDefense(loss="n-pair", sampler="softhard").resolve(THREAT, "N")
    with pytest.raises(UserError, match="'distance' is defined for embeddings of length 1"):
        NoDefense(loss="margin", sampler="distance").resolve(THREAT, "E")
    assert NoDefense(loss="n-pair").label == "N/A[n-pair]"
    assert NoDefense(loss="margin", sampler="distance").label == "N/A[margin, D]"
