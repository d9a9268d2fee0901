"""Networks that hide their gradient or cannot be measured, and honest ones, all made of one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from dmlbench.models.small import C2F2


def backbone() -> nn.Module:
    """The network that the others wrap."""
    torch.manual_seed(0)
    return C2F2(dim=64).build(1, 8).backbone


class Wrapped(nn.Module):
    """A backbone with something before it and behind it."""

    def __init__(
        self,
        backbone: nn.Module,
        before: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
        behind: Callable[[torch.Tensor], torch.Tensor] = lambda e: e,
    ) -> None:
        super().__init__()
        self.backbone, self.before, self.behind = backbone, before, behind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.behind(self.backbone(self.before(x)))


class Counting(Wrapped):
    """Changes what it computes from its 20th pass on."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.left = 20

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        e: torch.Tensor = self.backbone(x if self.left > 0 else 1 - x)
        return e


def in_place(x: torch.Tensor) -> torch.Tensor:
    """Brightens its argument itself."""
    return x.data.mul_(0.9)


def half(e: torch.Tensor) -> torch.Tensor:
    """Numbers of float16, as float32."""
    return e.half().float()


def saturated(e: torch.Tensor) -> torch.Tensor:
    """Sigmoids, of which most are exactly 0 or 1."""
    return torch.sigmoid(100 * (e - e.mean(1, keepdim=True)) / e.std(1, keepdim=True))


def levels(e: torch.Tensor) -> torch.Tensor:
    """Few numbers, and a straight gradient through them."""
    scale = e.detach().abs().max(dim=1, keepdim=True).values / 4
    return e + ((e / scale).round() * scale - e).detach()


FLAGGED: dict[str, tuple[str, Callable[[nn.Module], nn.Module]]] = {
    "rounded input": (
        "gradients",
        lambda b: Wrapped(b, before=lambda x: (x * 16).round() / 16),
    ),
    "saturated input": (
        "gradients|noise",
        lambda b: Wrapped(b, before=lambda x: torch.sigmoid(1e4 * (x - 0.5))),
    ),
    "saturated embedding": (
        "precision",
        lambda b: Wrapped(b, behind=saturated),
    ),
    "detached": ("gradients", lambda b: Wrapped(b, before=lambda x: x.detach())),
    "half precision": ("precision", lambda b: Wrapped(b, behind=half)),
    "half embeddings": ("precision", lambda b: Wrapped(b, behind=lambda e: e.half())),
    "rounded embedding": ("precision", lambda b: Wrapped(b, behind=levels)),
    "long embeddings": ("scale", lambda b: Wrapped(b, behind=lambda e: 1e10 * e)),
}
"""Name -> the flag that is raised, and the network made of a backbone."""

REFUSED: dict[str, tuple[str, Callable[[nn.Module], nn.Module]]] = {
    "statistics of the batch": (
        "numbers would depend on the batch size",
        lambda b: Wrapped(
            b, before=lambda x: (x - x.mean((0, 2, 3), keepdim=True)) / (x.std() + 0.1)
        ),
    ),
    "batch norm without statistics": (
        r"BatchNorm2d\)\): numbers would depend on the batch size",
        lambda b: nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), b),
    ),
    "noise": (
        "not deterministic.*--eot",
        lambda b: Wrapped(b, before=lambda x: x + 0.1 * torch.randn_like(x)),
    ),
    "in place": ("changes the images it is given", lambda b: Wrapped(b, before=in_place)),
    "not finite": ("not finite", lambda b: Wrapped(b, behind=lambda e: e / 0 * 0)),
    "integers": ("real numbers", lambda b: Wrapped(b, behind=lambda e: (1000 * e).long())),
}
"""Name -> what the error says, and the network made of a backbone."""
