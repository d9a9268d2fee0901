"""Training in several processes: what is shared out, and what is put together.

Started by ``torchrun``, every process draws the same batch and mines the same triplets on the
whole of it, so the number of processes changes no distribution. Each then works on its share of
the images or triplets, and gradients are summed. The inner problem of a defense is local to a
process: no gradient hook of any kind sees it.
"""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import nn

from dmlbench.common.errors import UserError
from dmlbench.compute.device import launched

ModuleT = TypeVar("ModuleT", bound=nn.Module)
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The place of this process among those that train one model together; alone by default."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and reports progress."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """The part of ``n`` items that is for this process; all where there is not one for each."""
        if n < self.size:
            return slice(0, n)
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def weight(self, n: int) -> float:
        """What the mean over this process's share of ``n`` items weighs in the mean over all."""
        if n < self.size:
            return 1 / self.size
        part = self.share(n)
        return float(part.stop - part.start) / n if n else 0.0

    def gather(self, rows: torch.Tensor, n: int) -> torch.Tensor:
        """(n, ...) rows of all processes, of which ``rows`` is this one's share. Differentiable."""
        if self.size == 1 or n < self.size:
            return rows
        gathered: torch.Tensor = _Gather.apply(rows, self, n)
        return gathered

    def mean(self, value: torch.Tensor, weight: float) -> torch.Tensor:
        """The mean over all processes, of which this one's ``value`` has this ``weight``."""
        return value if self.size == 1 else self.sum(value.detach() * weight)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of the processes' ``value``s."""
        if self.size > 1:
            torch.distributed.all_reduce(value)
        return value

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Every parameter's gradient becomes the sum over the processes, in one exchange."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not gradients:
            return
        flat = torch.cat([g.flatten() for g in gradients])
        torch.distributed.all_reduce(flat)
        parts = torch.split(flat, [g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def synchronised(self, model: ModuleT) -> ModuleT:
        """``model`` with batch norms that see the whole batch, not this process's share.

        Raises:
            UserError: it trains batch norms on a CPU, where PyTorch cannot synchronise them.
        """
        norm = nn.modules.batchnorm._BatchNorm
        modules = model.train().modules()
        if self.size == 1 or not any(isinstance(m, norm) and m.training for m in modules):
            return model
        if next(model.parameters()).device.type == "cpu":
            raise UserError(
                "several processes cannot train batch norms on a CPU: freeze them "
                "(freeze_bn=true, or torchvision.ops.FrozenBatchNorm2d in a network of your own)"
            )
        synchronised: ModuleT = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return synchronised

    def begin_alike(self, modules: Sequence[nn.Module]) -> None:
        """Give every process the weights of the first, whatever they were drawn from."""
        if self.size > 1:
            for module in modules:
                for value in module.state_dict().values():
                    dense = value.contiguous()
                    torch.distributed.broadcast(dense, 0)
                    value.copy_(dense)

    def from_first(self, found: T) -> T:
        """What the first process has found, in every process."""
        if self.size == 1:
            return found
        held = [found]
        torch.distributed.broadcast_object_list(held, 0)
        return held[0]

    def agree(self, number: int) -> bool:
        """Whether every process has the same ``number``."""
        if self.size == 1:
            return True
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, number)
        return len(set(found)) == 1


def world(device: torch.device) -> World:
    """The processes that ``torchrun`` started, connected from the first call on."""
    if not launched():
        return World()
    if not torch.distributed.is_initialized():
        if device.type == "cuda":  # collectives of objects go to the current device
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(torch.distributed.destroy_process_group)
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size())


class _Gather(torch.autograd.Function):
    """Sums of zero-padded rows: exact, and shares may differ in size."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, among: World, n: int) -> torch.Tensor:
        ctx.part = among.share(n)
        whole = rows.new_zeros(n, *rows.shape[1:])
        whole[ctx.part] = rows
        torch.distributed.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total[ctx.part], None, None
