"""Folded batch norms: the same embeddings and gradients, and networks that are left as they are."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision import models

from dmlbench.compute.embedding import EmbeddingModel
from dmlbench.compute.folding import folded, followers


def frozen(backbone: nn.Module) -> EmbeddingModel:
    """With statistics and parameters of batch norm that differ from channel to channel."""
    generator = torch.Generator().manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low in (
                (module.weight, 0.5),
                (module.running_var, 0.5),
                (module.bias, -0.1),
            ):
                assert values is not None
                nn.init.uniform_(values.detach(), low, low + 1, generator)
    return EmbeddingModel(backbone, "N").eval().requires_grad_(False)


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def lite() -> nn.Module:
    timm = pytest.importorskip("timm")
    network: nn.Module = timm.create_model("tf_efficientnet_lite0", num_classes=16)
    return network


@pytest.mark.parametrize(
    "build",
    [
        lambda: models.resnet18(num_classes=16),
        lambda: models.mobilenet_v2(num_classes=16),
        lite,
    ],
)
def test_embeddings_and_gradients_are_those_of_the_network(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, images = frozen(build()), torch.rand(3, 3, 64, 64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quick = folded(model, images)
    assert norms(model) > 15
    assert norms(quick) == 0
    assert not any(p.requires_grad for p in quick.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    x, de = torch.rand(2, 3, 64, 64), torch.randn(2, 16).double()
    torch.testing.assert_close(quick(x), model(x), atol=1e-5, rtol=0)
    # In float64: a rounding in float32 may switch a unit off whose input is near 0.
    gradients = []
    for network in (model.double(), folded(model, images.double())):
        at = x.double().requires_grad_()
        gradients.append(torch.autograd.grad(network(at), at, de)[0])
    scale = gradients[0].abs().max()
    assert (gradients[1] - gradients[0]).abs().max() < 1e-9 * scale


class Layers(nn.Module):
    """A convolution, a batch norm and a mean over pixels; ``use`` says how they are used."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.use, self.conv, self.bn = use, nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.again = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        if self.use == "twice":
            z = self.bn(self.again(self.bn(y)))
        elif self.use == "beside":  # the output of the convolution is read by something else
            z = self.bn(y) + y
        elif self.use == "behind":  # something lies between them
            z = self.bn(y.relu())
        elif self.use == "in place":
            z = self.bn(y.relu_())
        elif self.use == "by name":
            z = self.bn(input=y)
        elif self.use == "reads":  # a layer that folding takes away
            z = self.bn(y).to(self.bn.weight.dtype)
        else:
            z = self.bn(y)
        e = z.mean((2, 3))
        return e.squeeze() if self.use == "squeezed" else e


@pytest.mark.parametrize(
    ("use", "follows", "left"),
    [
        ("plain", True, 0),
        ("squeezed", True, 0),
        ("twice", False, 1),
        ("beside", True, 1),
        ("behind", False, 1),
        ("in place", False, 1),
        ("by name", False, 1),
        ("reads", True, 1),
    ],
)
def test_only_what_directly_follows_is_folded(use: str, follows: bool, left: int) -> None:
    torch.manual_seed(0)
    model, images = frozen(Layers(use)), torch.rand(4, 3, 8, 8)
    pair = {"backbone.conv": "backbone.bn"}
    assert followers(model, images) == (pair if follows else {})
    quick = folded(model, images)
    assert norms(quick) == left
    assert (quick is model) == (left > 0)
    torch.testing.assert_close(quick(1 - images), model(1 - images), atol=1e-5, rtol=0)


def test_a_batch_norm_in_train_mode_is_left_alone() -> None:
    model, images = frozen(Layers("plain")), torch.rand(4, 3, 8, 8)
    model.backbone.get_submodule("bn").train()
    assert folded(model, images) is model


def test_a_network_that_cannot_be_copied_is_measured_as_it_is() -> None:
    locked, images = Layers("plain"), torch.rand(4, 3, 8, 8)
    locked.lock = threading.Lock()  # type: ignore[assignment]
    model = frozen(locked)
    assert folded(model, images) is model
    seen: list[torch.Tensor] = []
    listening = Layers("plain")
    listening.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    listening.register_forward_hook(lambda _, __, e: e + 0 * seen.pop().sum())
    assert norms(folded(frozen(listening), images)) == 0


def test_hooks_parametrizations_and_bfloat16_are_left_alone() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 8, 8)
    plain = frozen(Layers("plain"))
    hooked, weighted, half = (copy.deepcopy(plain) for _ in range(3))
    hooked.backbone.get_submodule("bn").register_forward_hook(lambda _, __, out: 2 * out)
    nn.utils.parametrizations.weight_norm(weighted.backbone.get_submodule("conv"))
    half.use_bfloat16 = True
    for model in (hooked, weighted, half):
        assert folded(model, images) is model
    without = EmbeddingModel(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), "N").eval()
    assert folded(without, images) is without
