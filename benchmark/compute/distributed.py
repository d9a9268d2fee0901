"""Training one model in several processes that ``torchrun`` has started.

Every process draws the same batch and mines the same triplets on all of it, so the result has the
same distribution for any number of processes. Each process then works on its share of the images
or triplets, and the gradients are summed. While they perturb images (the inner problem of a
defense) the processes exchange nothing; only ``ca-tride`` exchanges embeddings in each PGD step.
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
from dmlbench.compute.device import under_torchrun

ModuleT = TypeVar("ModuleT", bound=nn.Module)
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes that train one model together, seen from this one.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """True in the process that writes files and reports progress."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """Return the part of ``n`` items that this process works on; all if ``n`` < ``size``."""
        if n < self.size:
            return slice(0, n)
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def weight(self, n: int) -> float:
        """Return the weight that the mean over this share has in the mean over all ``n`` items."""
        if n < self.size:
            return 1 / self.size
        part = self.share(n)
        return float(part.stop - part.start) / n if n else 0.0

    def gather(self, rows: torch.Tensor, n: int) -> torch.Tensor:
        """Join the shares of all processes to (n, ...) rows. Differentiable.

        Args:
            rows: the share of this process.
            n: number of rows in all processes together.
        """
        if self.size == 1 or n < self.size:
            return rows
        gathered: torch.Tensor = _Gather.apply(rows, self, n)
        return gathered

    def mean(self, value: torch.Tensor, weight: float) -> torch.Tensor:
        """Return the mean over the processes; ``weight`` is that of ``value``, and all sum to 1."""
        return value if self.size == 1 else self.sum(value.detach() * weight)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum of ``value`` over the processes; ``value`` is overwritten by it."""
        if self.size > 1:
            torch.distributed.all_reduce(value)
        return value

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace the gradient of each parameter by its sum over the processes, in one exchange."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not gradients:
            return
        flat = torch.cat([g.flatten() for g in gradients])
        torch.distributed.all_reduce(flat)
        parts = torch.split(flat, [g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def synchronise_batch_norm(self, model: ModuleT) -> ModuleT:
        """Make the batch norms of ``model`` use the statistics of the whole batch.

        Without this each would use those of the share of its process.

        Raises:
            UserError: the model trains batch norms on a CPU, where PyTorch has no such layer.
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

    def broadcast_weights(self, modules: Sequence[nn.Module]) -> None:
        """Copy the weights of the first process to all others."""
        if self.size > 1:
            for module in modules:
                for value in module.state_dict().values():
                    dense = value.contiguous()
                    torch.distributed.broadcast(dense, 0)
                    value.copy_(dense)

    def broadcast(self, found: T) -> T:
        """Return, in every process, the object ``found`` of the first process."""
        if self.size == 1:
            return found
        held = [found]
        torch.distributed.broadcast_object_list(held, 0)
        return held[0]

    def all_equal(self, number: int) -> bool:
        """Return True if ``number`` is the same in every process."""
        if self.size == 1:
            return True
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, number)
        return len(set(found)) == 1


def connect(device: torch.device) -> World:
    """Connect, on the first call, and return the processes that ``torchrun`` started.

    Without ``torchrun`` this is one process alone.
    """
    if not under_torchrun():
        return World()
    if not torch.distributed.is_initialized():
        if device.type == "cuda":  # objects are exchanged by way of the current device
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(torch.distributed.destroy_process_group)
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size())


class _Gather(torch.autograd.Function):
    """Join rows by summing zero-padded tensors: exact, and the shares may differ in size."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, world: World, n: int) -> torch.Tensor:
        ctx.part = world.share(n)
        whole = rows.new_zeros(n, *rows.shape[1:])
        whole[ctx.part] = rows
        torch.distributed.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total[ctx.part], None, None
