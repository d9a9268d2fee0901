"""The code, the libraries and the machine that produced a number."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import msgspec

import dmlbench
from dmlbench.common.hashing import file_sha256
from dmlbench.common.lazy import torch

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "faiss-gpu", "faiss-cpu", "safetensors")


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
        device: the device of the computation; None if this process has computed nothing.
    """
    return Provenance(
        dmlbench=dmlbench.__version__,
        git=git_revision(),
        python=platform.python_version(),
        platform=platform.platform(),
        libraries=_versions(),
        device="" if device is None else device_name(device),
        threads=None if device is None else torch.get_num_threads(),
        argv=[without_folders(_unicode(argument)) for argument in sys.argv[1:]],
    )


def without_folders(argument: str) -> str:
    """Cut a path in ``argument`` that begins with ``/``, ``~`` or ``..`` to its last part.

    Example: ``root=/home/me/set`` becomes ``root=set``. Results are published, and the folders of
    a machine do not belong into them: no number depends on them.
    """
    return re.sub(
        r'(^|[=:,"|])(?:~[^/,=:"|]*|\.\.)?/(?!/)(?:[^,=:/"|]*/)*(?=[^/])', r"\1", argument
    )


def _unicode(argument: str) -> str:
    """The argument with ``?`` for each byte that is no UTF-8: JSON has no such bytes."""
    return argument.encode(errors="replace").decode()


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or the kind of device and the processor's: ``cpu: AMD EPYC``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}: {processor_name()}"


@cache
def git_revision() -> str | None:
    """Return the git commit of the package's source, with ``-dirty`` if it was changed since.

    New or changed files in results/ and leaderboards/ do not count as a change. None if the package
    does not run from a git checkout.
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


def source_sha256() -> str | None:
    """SHA-256 of the Python files of this package; None if one was removed meanwhile."""
    package, digest = Path(dmlbench.__file__).resolve().parent, hashlib.sha256()
    folders = sorted(os.walk(package, followlinks=True))  # in a checkout some of them are links
    for folder, _, names in folders:
        for name in sorted(name for name in names if name.endswith(".py") and name[0] != "."):
            file = Path(folder, name)
            try:
                content = file_sha256(file)
            except OSError:
                return None
            digest.update(f"{file.relative_to(package)} {content}\n".encode())
    return digest.hexdigest()


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
    """Return the name of the CPU, e.g. ``AMD EPYC 7763 64-Core Processor``."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
