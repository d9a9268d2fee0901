"""``dmlbench doctor``: the state of an installation on one page, to paste into a bug report."""

from __future__ import annotations

import json
import os
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from dmlbench.cli.options import options
from dmlbench.common.errors import EXIT_FAILED_CELLS, UserError
from dmlbench.common.text import message_of

OPENMP = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")
EXTRAS = ("pytorch-metric-learning", "tensorboard", "timm", "ray")
WORDS = 60  # letters of a source that are shown


@click.command(
    epilog="\b\nExit codes: 0 sound, 1 the self-test failed.",
)
@options("results", "data_root", "device", "threads", "json")
def doctor(
    results: Path, data_root: Path | None, device: str, threads: int | None, as_json: bool
) -> None:
    """Show versions, device, threads, data and weights, and run a self-test of ten seconds.

    The output fits on a page and can be pasted into a bug report: your home folder is written ~.
    """
    from dmlbench.compute.device import Compute, processors
    from dmlbench.compute.provenance import git_revision, provenance

    test = _self_test(device, threads)
    try:
        chosen = Compute(device=device).torch_device()
        made = provenance(chosen)
    except UserError:  # the self-test says why
        made = provenance(None)
    libraries = made.libraries | {name: _version(name) for name in EXTRAS}
    found: dict[str, dict[str, str]] = {
        "versions": {
            "dmlbench": made.dmlbench + (f", commit {git_revision()}" if git_revision() else ""),
            "python": made.python,
            "platform": made.platform,
            **{name: version or "not installed" for name, version in libraries.items()},
        },
        "compute": {
            "device": made.device or "none",
            "gpus": _gpus(),
            "threads": f"{made.threads or 'none'} of PyTorch, {processors()} processors",
            **{name: os.environ[name] for name in OPENMP if name in os.environ},
        },
        "data": _data(data_root),
        "weights": _weights(results),
        "self-test": test,
    }
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        for title, facts in found.items():
            click.echo(click.style(title, fg="cyan"))
            width = max(map(len, facts), default=0)
            for name, text in facts.items():
                click.echo(f"  {name:{width}}  {text}")
    if test["result"] != "ok":
        raise SystemExit(EXIT_FAILED_CELLS)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _gpus() -> str:
    from dmlbench.common.lazy import torch

    if not torch.cuda.is_available():
        return "none"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{', '.join(names)} (CUDA {torch.version.cuda})"


def _data(data_root: Path | None) -> dict[str, str]:
    """Data set -> its folder, or where it is to be had."""
    from dmlbench.datasets.base import DATASETS

    found = {}
    for cls in DATASETS:
        place = cls().locate(data_root)
        source = cls().protocol.source
        cut = source if len(source) <= WORDS else f"{source[:WORDS]}... (dmlbench data list)"
        found[cls.card.name] = f"in {_home(place)}" if place else f"absent: {cut}"
    return found


def _weights(results: Path) -> dict[str, str]:
    """Trained models, and the folder of ImageNet weights."""
    from dmlbench.common.lazy import torch

    models = results / "models"
    trained = len(list(models.glob("*/manifest.json")))
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    files = sorted(path.name for path in hub.glob("*")) if hub.is_dir() else []
    said = ", ".join(files) if files else "nothing yet: downloaded when a network needs them"
    return {"trained here": f"{trained} in {_home(models)}", "ImageNet": f"{_home(hub)}: {said}"}


def _self_test(device: str, threads: int | None) -> dict[str, str]:
    """Attack eight queries of an untrained network twice: the numbers must be the same."""
    import dmlbench

    begun = time.perf_counter()

    def measure() -> dict[str, Any]:
        report = dmlbench.evaluate(
            "lenet", "fashion-mini", attacks=["es:steps=4"], queries=8,
            device=device, threads=threads, progress=False,
        )  # fmt: skip
        if report.failed:
            raise RuntimeError("; ".join(map(str, report.failed.values())))
        return {name: report[name].value for name in ("R@1", "ES:D (steps=4)")}

    try:
        with warnings.catch_warnings(action="ignore"):  # that it is untrained
            first, second = measure(), measure()
    except Exception as error:
        said = message_of(error)
        return {"result": f"failed: {type(error).__name__}: {said}"}
    seconds = f"{time.perf_counter() - begun:.1f} s"
    numbers = ", ".join(f"{name} {value:.4f}" for name, value in first.items())
    if first != second:
        return {"result": f"failed: two runs differ: {first} and {second}", "time": seconds}
    return {"result": "ok", "numbers": numbers, "time": seconds}


def _home(path: Path) -> str:
    """The path, with ``~`` for the home folder."""
    from dmlbench.datasets.files.places import home

    text, own = str(path), str(home())
    return f"~{text[len(own) :]}" if text == own or text.startswith(own + os.sep) else text
