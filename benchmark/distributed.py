"""Training in several processes: what is shared out, and what is put together.

Started by ``torchrun``, every process draws the same batch and mines the same triplets on the
whole of it, so the number of processes changes no distribution. Each then works on its share of
the images or triplets, and gradients are summed. The inner problem of a defense is local to a
process: no gradient hook of any kind sees it.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import nn

from dmlbench.compute import launched
from dmlbench.errors import UserError

ModuleT = TypeVar("ModuleT", bound=nn.Module)


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
        if n < max(1, self.size):
            return 1 / self.size
        mine = self.share(n)
        return float(mine.stop - mine.start) / n

    def gather(self, mine: torch.Tensor, n: int) -> torch.Tensor:
        """(n, ...) rows of all processes, of which ``mine`` is this one's share. Differentiable."""
        if self.size == 1 or n < self.size:
            return mine
        gathered: torch.Tensor = _Gather.apply(mine, self, n)
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
        if self.size == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([g.flatten() for g in gradients])
        torch.distributed.all_reduce(flat)
        parts = torch.split(flat, [g.numel() for g in gradients])
        for p, part in zip(parameters, parts, strict=True):
            p.grad = part.view_as(p)

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
            raise UserError("several processes cannot train batch norms on a CPU: freeze them")
        synchronised: ModuleT = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return synchronised

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            torch.distributed.barrier()

    def agree(self, number: int) -> bool:
        """Whether every process has the same ``number``."""
        if self.size == 1:
            return True
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, number)
        return len(set(found)) == 1


def local_device(name: str) -> str:
    """The device of this process: under ``torchrun`` each has a GPU of its own."""
    if not launched() or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{os.environ['LOCAL_RANK']}"


def leads() -> bool:
    """Whether this is the process that speaks for all."""
    return not launched() or os.environ["RANK"] == "0"


def world(device: torch.device) -> World:
    """The processes that ``torchrun`` started, connected from the first call on."""
    if not launched():
        return World()
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(torch.distributed.destroy_process_group)
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size())


class _Gather(torch.autograd.Function):
    """Sums of zero-padded rows: exact, and shares may differ in size."""

    @staticmethod
    def forward(ctx: Any, mine: torch.Tensor, among: World, n: int) -> torch.Tensor:
        ctx.place = among.share(n)
        rows = mine.new_zeros(n, *mine.shape[1:])
        rows[ctx.place] = mine
        torch.distributed.all_reduce(rows)
        return rows

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total[ctx.place], None, None
