"""Batch norm folded into convolutions: the same frozen network, with fewer passes over memory.

In eval mode a batch norm multiplies each channel by a number and adds another one. Both can be part
of the convolution before it:

    (w * x + b - mean) / sqrt(var + eps) * g + h  =  (w s) * x + (b - mean) s + h,
                                                     s = g / sqrt(var + eps)

Embeddings and gradients change by rounding, as they do from one device to another. How much time
it saves is measured by ``scripts.folding``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dmlbench.compute.device import precision_switches
from dmlbench.compute.embedding import EmbeddingModel

TOLERANCE = 1e-4  # of the length of an embedding
SAMPLE = 4  # images that the copy is held against the model on


def folded(model: EmbeddingModel, images: torch.Tensor) -> EmbeddingModel:
    """A copy of ``model`` with batch norms folded, or ``model`` itself.

    Which batch norm follows which convolution is seen in a pass. The copy is used only if it has
    the embeddings of the model, on some of ``images`` and on their negatives. It is not made in
    bfloat16 and TF32, whose rounding is too coarse for that; nor of a network that cannot be copied
    or that reads its own layers.

    Args:
        model: frozen, in eval mode.
        images: (B, C, H, W) in [0, 1].
    """
    if model.use_bfloat16 or (images.is_cuda and _uses_tf32()):
        return model
    try:
        with torch.no_grad():
            return _checked_copy(model, images[:SAMPLE])
    except Exception:  # of the network's own code: what is wrong with it shows where it is used
        return model


def _uses_tf32() -> bool:
    return any(switch.fp32_precision == "tf32" for switch in precision_switches())


def _checked_copy(model: EmbeddingModel, images: torch.Tensor) -> EmbeddingModel:
    if not (pairs := followers(model, images)):
        return model
    copied = copy.deepcopy(model)
    for convolution, norm in pairs.items():
        _fold(copied, convolution, norm)
    for x in (images, 1 - images):
        before, after = model(x), copied(x)
        if not ((after - before).norm(dim=1) <= TOLERANCE * before.norm(dim=1)).all():
            return model
    return copied


def followers(model: nn.Module, images: torch.Tensor) -> dict[str, str]:
    """Convolution -> the batch norm that is given its output, by name; each called once."""
    made: list[tuple[str, torch.Tensor, int]] = []  # with the number of changes in place
    found: list[tuple[str, str]] = []
    calls: list[str] = []

    def convolved(name: str, output: torch.Tensor) -> None:
        calls.append(name)
        made.append((name, output, output._version))

    def normalised(name: str, given: tuple[torch.Tensor, ...]) -> None:
        calls.append(name)
        for one, output, version in made:
            if given and given[0] is output and output._version == version:
                found.append((one, name))

    with ExitStack() as hooks:
        for name, module in _plain(model):
            if isinstance(module, nn.Conv2d):
                handle = module.register_forward_hook(
                    lambda _, __, output, name=name: convolved(name, output)
                )
            else:
                handle = module.register_forward_pre_hook(
                    lambda _, given, name=name: normalised(name, given)
                )
            hooks.callback(handle.remove)
        model(images)
    once = {name for name in calls if calls.count(name) == 1}
    return {one: other for one, other in found if {one, other} <= once}


def _plain(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The convolutions and batch norms in eval mode that nothing else acts on."""
    for name, module in model.named_modules():
        acted_on = module._forward_hooks or module._forward_pre_hooks
        if module.training or acted_on or hasattr(module, "parametrizations"):
            continue
        if isinstance(module, nn.Conv2d) or (
            isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
        ):
            yield name, module


def _fold(model: nn.Module, convolution: str, norm: str) -> None:
    """Replace both modules; what a batch norm of timm does besides (an activation) stays."""
    conv, bn = model.get_submodule(convolution), model.get_submodule(norm)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(bn, nn.BatchNorm2d)
    fused = fuse_conv_bn_eval(conv, bn).requires_grad_(False)
    rest = [getattr(bn, name) for name in ("drop", "act") if hasattr(bn, name)]
    model.set_submodule(convolution, fused)
    model.set_submodule(norm, nn.Sequential(*rest) if rest else nn.Identity())
