"""Where and how things are computed: device, batch size, threads, precision.

Device, batch size and threads may not change a number beyond the last bits, so they are no part
of an identity. Precision is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dmlbench.common.errors import UserError
from dmlbench.common.lazy import torch

CPU_BATCH, GPU_BATCH = 128, 1024
LARGE = 128  # pixels a side
MOST_THREADS = 16  # more do not speed up batches of 128, and short batches are padded to 8 a thread


@dataclass(frozen=True)
class Compute:
    """A device and how much of it to use.

    Attributes:
        device: ``cpu``, ``cuda``, ``cuda:1``; ``auto`` takes a GPU if there is one.
        batch_size: images a forward pass in evaluation; None: 128 on a CPU and 1024 on a GPU, a
            quarter of that for large images.
        threads: CPU threads; None: as many as PyTorch chooses, up to 16.
        precision: of the network in evaluation: fp32; tf32 (GPU) or bf16 change numbers a little
            and are part of a cell's identity.
    """

    device: str = "auto"
    batch_size: int | None = None
    threads: int | None = None
    precision: str = "fp32"

    def torch_device(self) -> torch.device:
        """The device; UserError if it is not there."""
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"--device {self.device} cannot be used: {reason}") from None
        return device

    def check(self) -> None:
        """UserError if the device is not there, or cannot compute at this precision."""
        device = self.torch_device()
        if self.precision == "tf32" and device.type != "cuda":
            raise UserError(f"precision tf32 needs a GPU; the device is {device}")

    def rows(self, size: int) -> int:
        """Images of ``size`` x ``size`` pixels a forward pass."""
        if self.batch_size is not None:
            return self.batch_size
        rows = CPU_BATCH if self.torch_device().type == "cpu" else GPU_BATCH
        return rows if size < LARGE else rows // 4

    @contextmanager
    def applied(self) -> Iterator[torch.device]:
        """The precision and the threads asked for, and deterministic kernels, inside."""
        device = self.torch_device()
        threads, convolution = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
        matmul, deterministic = (
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.deterministic,
        )
        torch.backends.cudnn.allow_tf32 = self.precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = self.precision == "tf32"
        torch.backends.cudnn.deterministic = True
        torch.set_num_threads(self.threads or min(threads, MOST_THREADS))
        try:
            yield device
        finally:
            torch.set_num_threads(threads)
            torch.backends.cudnn.allow_tf32 = convolution
            torch.backends.cuda.matmul.allow_tf32 = matmul
            torch.backends.cudnn.deterministic = deterministic


def processors() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def launched() -> bool:
    """Whether ``torchrun`` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def local_device(name: str) -> str:
    """The device of this process: under ``torchrun`` each has a GPU of its own.

    Raises:
        UserError: one GPU is named for all of them.
    """
    if not launched() or name == "cpu" or not torch.cuda.is_available():
        return name
    if name not in ("auto", "cuda"):
        raise UserError(f"--device {name} under torchrun: each process takes a GPU; leave it out")
    return f"cuda:{os.environ['LOCAL_RANK']}"


def leads() -> bool:
    """Whether this is the process that speaks for all."""
    return not launched() or os.environ["RANK"] == "0"
