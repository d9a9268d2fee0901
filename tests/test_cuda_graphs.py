"""CUDA graphs: padding and copying are tested on any machine, the recording only on a GPU."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from dmlbench.attacks.base import ATTACKS
from dmlbench.compute.device import Compute
from dmlbench.compute.embedding import EmbeddingModel, embed, frozen
from dmlbench.core.protocol import Threat
from dmlbench.datasets.base import RetrievalData
from dmlbench.evaluation import cuda_graphs
from dmlbench.evaluation.cuda_graphs import Replayed, bound_by_launches, replayed_or_launched
from dmlbench.evaluation.evaluator import evaluation
from dmlbench.testing import tiny_network
from tests.graphs import recorder
from tests.reporters import Silent

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def model() -> EmbeddingModel:
    return tiny_network().eval().requires_grad_(False)


def test_batches_of_any_size_and_results_are_not_overwritten(
    model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", recorder(6))
    sample = torch.rand(6, 1, 8, 8)
    replayed = Replayed(model, sample)
    for count in (6, 2, 9):  # as recorded, padded, launched
        x, y = (torch.rand(count, 1, 8, 8).requires_grad_() for _ in range(2))
        first, second = replayed(x), replayed(y)
        assert torch.allclose(first, model(x), atol=1e-6)  # not overwritten by the second
        assert torch.allclose(second, model(y), atol=1e-6)
        direction = torch.rand(count, 8)
        found = torch.autograd.grad(second, y, direction)[0]
        assert torch.allclose(found, torch.autograd.grad(model(y), y, direction)[0], atol=1e-6)


def test_a_recording_that_gives_something_else_is_refused(
    model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch.cuda, "make_graphed_callables", lambda function, _: lambda x: function(x) + 1
    )
    with pytest.raises(RuntimeError, match="differ"):
        Replayed(model, torch.rand(6, 1, 8, 8))


def test_a_single_bit_of_difference_is_refused(
    model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rounded(function, _):  # type: ignore[no-untyped-def]
        def call(x: torch.Tensor) -> torch.Tensor:
            e: torch.Tensor = function(x)
            last = torch.nextafter(e.detach()[:1, :1], torch.tensor(2.0)) - e.detach()[:1, :1]
            return e + torch.nn.functional.pad(last, (0, e.shape[1] - 1, 0, len(e) - 1))

        return call

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", rounded)
    with pytest.raises(RuntimeError, match="differ"):
        Replayed(model, torch.rand(6, 1, 8, 8))


def test_on_a_cpu_nothing_is_recorded(model: EmbeddingModel) -> None:
    assert replayed_or_launched(model, torch.rand(6, 1, 8, 8), pytest.fail) is model


@pytest.mark.parametrize(
    ("device", "size", "expected"),
    [("cuda", 28, True), ("cuda:1", 64, True), ("cuda", 65, False), ("cpu", 28, False)],
)
def test_the_rule_is_the_device_and_the_size(device: str, size: int, expected: bool) -> None:
    for rows in (1, 1024):
        assert bound_by_launches(torch.device(device), (rows, 3, size, size)) is expected


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the CPU were a GPU that launches slowly."""
    monkeypatch.setattr(cuda_graphs, "bound_by_launches", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", recorder(32))


@pytest.mark.usefixtures("on_a_gpu")
def test_a_cell_says_whether_its_passes_were_replayed(
    tiny: RetrievalData, model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = ATTACKS.get("es")().resolve(Threat(eps=0.1, alpha=0.05, steps=2))
    found = {}
    for name in ("replayed", "launched"):
        reporter = Silent()
        with evaluation(model, tiny, Compute("cpu", batch_size=32), reporter) as measured:
            benign, attacked = measured.benign(), measured.attack(attack, 0, "es")
        for cell in (benign, attacked):
            assert cell.findings["cuda_graphs"] is (name == "replayed")
        found[name] = attacked.metrics
        assert len(reporter.warnings) == (name == "launched")
        monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda function, _: torch.neg)
    assert found["replayed"] == found["launched"]


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("error", [RuntimeError("odd\nlong"), torch.OutOfMemoryError("full")])
def test_what_cannot_be_recorded_is_launched_and_said(
    model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    said: list[str] = []
    assert replayed_or_launched(model, torch.rand(6, 1, 8, 8), said.append) is model
    (line,) = said
    assert line.endswith(f"cannot be recorded: {str(error).splitlines()[0]}")


@pytest.mark.gpu
@GPU
def test_a_gpu_replays_what_it_launches(model: EmbeddingModel) -> None:
    model.cuda()
    sample = torch.rand(64, 1, 8, 8, device="cuda")
    with frozen(model):
        replayed = Replayed(model, sample)
        for count in (64, 5):
            x = torch.rand(count, 1, 8, 8, device="cuda").requires_grad_()
            e, expected = embed(replayed, x), embed(model, x)
            assert torch.allclose(e, expected, atol=1e-5)
            direction = torch.rand_like(e)
            found, wanted = (torch.autograd.grad(o, x, direction)[0] for o in (e, expected))
            assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.gpu
@GPU
def test_a_network_that_cannot_be_recorded_is_launched(model: EmbeddingModel) -> None:
    said: list[str] = []
    model.cuda()
    forward = model.forward
    model.forward = lambda x: forward(x * float(x.max() > -1))  # type: ignore[method-assign]
    with frozen(model):
        sample = torch.rand(64, 1, 8, 8, device="cuda")
        assert replayed_or_launched(model, sample, said.append) is model
    assert "cannot be recorded" in said[0]
