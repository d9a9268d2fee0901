"""Weights whose names are not the network's, matched by the order of their tensors.

Packages that carry published weights often name layers in their own way, but list them in the order
of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def renamed_by_order(
    state: Mapping[str, torch.Tensor],
    network: Mapping[str, torch.Tensor],
    in_classifier: Callable[[str], bool],
) -> tuple[dict[str, torch.Tensor] | None, str]:
    """Give the tensors of ``state`` the names in ``network``, in order.

    Every tensor must have the shape of its partner and the last part of its name (``weight``,
    ``running_mean``, ...); those of the classifier may have another shape, or be missing together.

    Args:
        state: name -> tensor, in the order of the file.
        network: the state dict of the published network.
        in_classifier: True for the names of its classifier.

    Returns:
        name -> tensor, and an empty text; or None, and the reason why they do not fit.
    """
    names = list(network)
    if len(state) != len(names):
        names = [name for name in names if not in_classifier(name)]
    if len(state) != len(names):
        return None, f"it has {len(state)} of them, the network {len(network)}"
    for place, (name, (key, value)) in enumerate(zip(names, state.items(), strict=True), start=1):
        alike = in_classifier(name) or value.shape == network[name].shape
        if not alike or _last(key) != _last(name):
            shapes = tuple(value.shape), tuple(network[name].shape)
            return None, f"number {place} is {key} {shapes[0]}, the network's {name} {shapes[1]}"
    return dict(zip(names, state.values(), strict=True)), ""


def _last(name: str) -> str:
    return name.rpartition(".")[2]
