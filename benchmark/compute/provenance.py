"""What produced a number: code, libraries, machine."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import msgspec

import dmlbench
from dmlbench.common.lazy import torch

LIBRARIES = ("torch", "torchvision", "numpy", "faiss-gpu", "faiss-cpu", "safetensors")


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Facts that explain a number but are not part of its identity.

    Attributes:
        dmlbench: version of this package.
        git: commit of the checkout, see ``git_revision``.
        python: version.
        platform: operating system and architecture.
        libraries: name -> version of the installed ones of ``LIBRARIES``.
        device: name of the processor; empty where nothing was computed.
        threads: CPU threads of PyTorch; None where nothing was computed.
        argv: the arguments of the command line.
    """

    dmlbench: str
    git: str | None
    python: str
    platform: str
    libraries: dict[str, str]
    device: str
    threads: int | None
    argv: list[str]


def provenance(device: torch.device | None) -> Provenance:
    """The provenance of what this process computes.

    Args:
        device: what it was computed on; None where nothing was computed in this process.
    """
    return Provenance(
        dmlbench=dmlbench.__version__,
        git=git_revision(),
        python=platform.python_version(),
        platform=platform.platform(),
        libraries=_versions(),
        device="" if device is None else device_name(device),
        threads=None if device is None else torch.get_num_threads(),
        argv=[without_folders(argument) for argument in sys.argv[1:]],
    )


def without_folders(argument: str) -> str:
    """An argument with its absolute paths cut to their last part: ``root=/home/me/set`` is
    ``root=set``. Results are published, and where they lay on a machine decides no number.
    """
    return re.sub(r"(^|[=:,])/(?!/)(?:[^,=:/]*/)*(?=[^/])", r"\1", argument)


def device_name(device: torch.device) -> str:
    """The processor's or the accelerator's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu: {processor_name()}"


@cache
def git_revision() -> str | None:
    """``<commit>`` or ``<commit>-dirty`` of the checkout the package runs from; None elsewhere.

    Results and boards that were written since do not make the code another one.
    """
    source = Path(dmlbench.__file__).resolve().parent
    if not (source.parent / ".git").exists():
        return None
    try:
        commit = _git(source, "rev-parse", "HEAD")
        code = (":/", ":(exclude,top)results", ":(exclude,top)leaderboards")
        dirty = _git(source, "status", "--porcelain", "--untracked-files=no", "--", *code)
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-dirty" if dirty else commit


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def processor_name() -> str:
    """The CPU's own name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
