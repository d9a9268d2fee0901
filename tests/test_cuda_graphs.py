"""CUDA graphs: padding and copying are tested on any machine, the recording only on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dmlbench.compute.embedding import EmbeddingModel, embed, frozen
from dmlbench.evaluation.cuda_graphs import Replayed, fastest
from dmlbench.models.small import C2F2

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def model() -> EmbeddingModel:
    torch.manual_seed(0)
    return C2F2(dim=8).build(1, 8).eval().requires_grad_(False)


def recorder(images: int) -> Callable[..., Callable[[torch.Tensor], torch.Tensor]]:
    """As ``make_graphed_callables``: one size only, and each call overwrites the last result."""

    class Static(torch.autograd.Function):
        @staticmethod
        def forward(ctx, function, buffer, x):  # type: ignore[no-untyped-def]
            assert len(x) == images
            with torch.enable_grad():
                ctx.x = x.detach().requires_grad_()
                ctx.e = function(ctx.x)
            buffer.copy_(ctx.e.detach())
            return buffer.detach()

        @staticmethod
        def backward(ctx, gradient):  # type: ignore[no-untyped-def]
            return None, None, torch.autograd.grad(ctx.e, ctx.x, gradient)[0]

    def make(function, examples):  # type: ignore[no-untyped-def]
        buffer = function(examples[0]).detach()
        return lambda x: Static.apply(function, buffer, x)

    return make


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


def test_on_a_cpu_nothing_is_recorded(model: EmbeddingModel) -> None:
    assert fastest(model, torch.rand(6, 1, 8, 8), pytest.fail) is model


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
        assert fastest(model, torch.rand(64, 1, 8, 8, device="cuda"), said.append) is model
    assert "cannot be recorded" in said[0]
