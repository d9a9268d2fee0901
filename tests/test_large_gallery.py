"""A large gallery is worked on in parts, which changes no bit of a result."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dmlbench.attacks import furthest_negative, misranking
from dmlbench.attacks.base import ATTACKS, Gallery
from dmlbench.attacks.engine import classes, query_loss
from dmlbench.attacks.engine import gallery as gallery_module
from dmlbench.core.protocol import Threat
from dmlbench.metrics import collapse, distance
from dmlbench.metrics.collapse import effective_rank, mean_cosine
from dmlbench.metrics.distance import PART, Metric, pairwise, squared_norms
from dmlbench.metrics.relevance import Relevance
from dmlbench.metrics.retrieval import retrieval
from dmlbench.testing.large import largest

N, D = 210, 7  # of a gallery whose copy is looked for


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (distance, collapse, gallery_module):
        monkeypatch.setattr(module, "PART", 16)
    for module in (classes, query_loss, misranking, furthest_negative):
        monkeypatch.setattr(module, "CHUNK", 16)
    monkeypatch.setattr(furthest_negative, "BLOCK", 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 3, 64, 512])
@pytest.mark.parametrize("threads", [1, 2])
def test_norms_are_the_bits_of_the_whole(dtype: torch.dtype, dim: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.randn(2 * PART + 70, dim, dtype=dtype)
        for n in (0, 1, 5, PART - 1, PART, PART + 1, 2 * PART - 1, 2 * PART, len(x)):
            assert torch.equal(squared_norms(x[:n]), x[:n].square().sum(1)), n
        columns = x.T.contiguous().T  # stored column by column
        assert torch.equal(squared_norms(columns), columns.square().sum(1))
        leaf = x[: 2 * PART].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(squared_norms(leaf).sum(), leaf)
        assert torch.equal(gradient, 2 * leaf.detach())
        strided = x[::2]
        assert torch.equal(squared_norms(strided), strided.square().sum(1))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", ["N", "E"])
def test_distances_are_the_bits_of_the_plain_formula(dtype: torch.dtype, metric: Metric) -> None:
    a, b = torch.randn(9, 48, dtype=dtype), torch.randn(2 * PART + 9, 48, dtype=dtype)
    for n in (1, PART, len(b)):
        whole = torch.addmm(b[:n].square().sum(1), a, b[:n].T, alpha=-2)
        expected = (whole + a.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
        assert torch.equal(pairwise(a, b[:n], metric), expected)
        assert torch.equal(pairwise(a, b[:n], metric, squared_norms(b[:n])), expected)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("metric", ["N", *(pytest.param(m, marks=pytest.mark.slow) for m in "EC")])
def test_no_operation_copies_the_gallery(metric: Metric) -> None:
    x, labels = torch.nn.functional.normalize(torch.randn(N, D), dim=1), torch.arange(N) // 5
    index = torch.arange(0, N, 43)  # their distances are fewer than the gallery's numbers
    e = x[index] + 0.1

    def attacks() -> None:
        gallery = Gallery(x, labels, metric)
        for name in {*ATTACKS.names()} - {"transfer"}:  # needs a second network
            goal = ATTACKS.get(name)().resolve(Threat(8 / 255, 3 / 255, 4)).goal(gallery, index, 0)
            goal.value_and_grad(e, 0)
            goal.outcome(e)

    works: tuple[Callable[[], object], ...] = (
        attacks,
        lambda: retrieval(e, index, x, Relevance.leave_one_out(labels), metric),
        lambda: mean_cosine(x, torch.float64),
        lambda: effective_rank(x),
    )
    for work in works:
        assert largest(work, N * D) is None


def test_signs_of_a_collapse_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    scale = torch.linspace(0, 3, 12, dtype=torch.float64)
    for e in (torch.randn(50, 12) * scale.float(), torch.ones(50, 12)):
        whole = float(mean_cosine(e, torch.float64)), effective_rank(e)
        assert whole[0] == float(mean_cosine(e.double()))
        with monkeypatch.context() as patched:
            patched.setattr(collapse, "PART", 16)
            parts = float(mean_cosine(e, torch.float64)), effective_rank(e)
        assert parts == pytest.approx(whole, abs=1e-5)
