"""Settings of the computation: device, batch size, threads, precision.

Device, batch size and threads change a number by no more than its last bits, so they are not part
of the identity of a cell. The precision is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dmlbench.common.errors import UserError
from dmlbench.common.lazy import torch
from dmlbench.common.numbers import check_whole
from dmlbench.common.text import first_line
from dmlbench.core.protocol import PRECISIONS

CPU_BATCH, GPU_BATCH = 128, 1024
LARGE = 96  # height and width in pixels from which images count as large
PASSES = 128  # of large images on a CPU until the next running number: about 10 s on one core
MOST_THREADS = 16  # more do not speed up batches of 128, and short ones are padded to 8 a thread


@dataclass(frozen=True)
class Compute:
    """A device, and the settings for computing on it.

    Attributes:
        device: ``cpu``, ``cuda``, ``cuda:1``, ...; ``auto`` uses a GPU if there is one.
        batch_size: number of images in a forward pass of the evaluation. None: 128 on a CPU and
            1024 on a GPU, and a quarter of that for large images.
        threads: number of CPU threads. None: as PyTorch chooses, but at most 16.
        precision: number format of the network in the evaluation: fp32, tf32 (GPU only) or bf16.
            The latter two change numbers a little, so it is part of the identity of a cell.
        eot: passes of a randomised network that every number is the mean of (expectation over
            transformation); 1: the network is not randomised. Part of the identity of a cell.
    """

    device: str = "auto"
    batch_size: int | None = None
    threads: int | None = None
    precision: str = "fp32"
    eot: int = 1

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise UserError(f"precision must be one of {known}, got {self.precision!r}")
        for name, value in (
            ("batch_size", self.batch_size),
            ("threads", self.threads),
            ("eot", self.eot),
        ):
            if value is not None:
                check_whole(name, value, 1)

    def torch_device(self) -> torch.device:
        """Return the device; UserError if this machine does not have it."""
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
            torch.empty(1, device=device).cpu()  # which the device meta cannot
        except (RuntimeError, AssertionError, TypeError) as error:
            reason = first_line(error)
            raise UserError(f"--device {self.device} cannot be used: {reason}") from None
        return device

    def check(self) -> None:
        """Raise UserError if the device does not exist or cannot compute at this precision."""
        device = self.torch_device()
        if self.precision == "tf32" and device.type != "cuda":
            raise UserError(f"precision tf32 needs a GPU; the device is {device}")

    def rows(self, size: int) -> int:
        """Return the number of images of ``size`` x ``size`` pixels in a forward pass."""
        if self.batch_size is not None:
            return self.batch_size
        rows = CPU_BATCH if self.torch_device().type == "cpu" else GPU_BATCH
        return rows if size < LARGE else rows // 4

    def passes(self, size: int) -> int | None:
        """Return the number of passes over images of ``size`` x ``size`` that a batch may take.

        It is for large images on a CPU, where they pass one by one (``embed``) and large batches
        save nothing: their numbers would only come later. None: there is no limit.
        """
        slow = size >= LARGE and self.torch_device().type == "cpu"
        return PASSES if slow and self.batch_size is None else None

    @contextmanager
    def applied(self) -> Iterator[torch.device]:
        """Set precision, threads and deterministic kernels within a ``with`` block.

        Raises:
            UserError: this machine does not have the device.
        """
        device = self.torch_device()
        threads, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
        switches = precision_switches()
        before = [switch.fp32_precision for switch in switches]
        for switch in switches:
            switch.fp32_precision = "tf32" if self.precision == "tf32" else "ieee"
        torch.backends.cudnn.deterministic = True
        torch.set_num_threads(self.threads or min(threads, MOST_THREADS))
        try:
            yield device
        finally:
            torch.set_num_threads(threads)
            for switch, precision in zip(switches, before, strict=True):
                switch.fp32_precision = precision
            torch.backends.cudnn.deterministic = deterministic


def precision_switches() -> tuple[Any, ...]:
    """PyTorch's switches of how float32 is computed: of matrix products and convolutions.

    Those of the CPU are among them: a user may have allowed bfloat16 there, which some CPUs have.
    """
    backends: Any = torch.backends  # whose switches have no types
    gpu, cpu = backends.cudnn, backends.mkldnn
    return (backends.cuda.matmul, gpu.conv, gpu.rnn, cpu.matmul, cpu.conv, cpu.rnn)


def processors() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def under_torchrun() -> bool:
    """Return True if ``torchrun`` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def local_device(name: str) -> str:
    """Return the device of this process: under ``torchrun`` every process gets its own GPU.

    Raises:
        UserError: ``name`` is a certain GPU, but there are several processes.
    """
    if not under_torchrun() or name == "cpu" or not torch.cuda.is_available():
        return name
    if name not in ("auto", "cuda"):
        raise UserError(f"--device {name} under torchrun: each process takes a GPU; leave it out")
    return f"cuda:{os.environ['LOCAL_RANK']}"


def is_main_process() -> bool:
    """Return True in the one process that reports progress and writes files for all."""
    return not under_torchrun() or os.environ["RANK"] == "0"
