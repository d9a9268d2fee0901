"""Measure the time of attacks beyond that of the network: ``python -m scripts.overhead [options]``.

Images and embeddings are random. For the setting with 224 px images use
``--model resnet18 --channels 3 --size 224``. With ``--optimizer apgd`` a step is one of ten of
APGD, the forward pass that judges the last one included. For each attack the columns are

- overhead: the time of a full PGD step, divided by that of a bare one (forward pass and gradient in
  the input, parameters frozen). The two alternate in one run. The median of the ratios is
  reported, which a noisy machine hardly changes, and in brackets the least and the greatest;
- queries/s: queries per second at 32 steps, from the median step;
- set-up: share of the choice of targets, including sorting, in the time of the attack;
- MiB: peak memory of the choice of targets and one step, beyond that of the bare step.

No test asserts a duration.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch

from dmlbench.attacks.base import ATTACKS, Attack, Gallery
from dmlbench.attacks.engine.apgd import APGD
from dmlbench.attacks.engine.pgd import PGD
from dmlbench.compute.device import Compute
from dmlbench.compute.embedding import embed, frozen, on_device
from dmlbench.core.protocol import ERS_ATTACKS
from dmlbench.datasets.mnist import THREAT
from dmlbench.models.base import parse_model
from scripts.record import CSV, save, spread

DIM = 512
PAPERS = (*ERS_ATTACKS, "sp-qa+", "sp-qa-")  # each a search by signs of gradients
APGD_STEPS = 10


def clock(work: Callable[[], object], device: torch.device) -> float:
    """Time one call in seconds, until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def peak_mib(work: Callable[[], object], device: torch.device) -> float:
    """Measure the peak memory of ``work`` on its device, in MiB, beyond what was in use before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current use
    before = resident("VmRSS")
    work()
    return (resident("VmHWM") - before) / 1024


def resident(key: str) -> int:
    """Return an entry of /proc/self/status in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


@click.command()
@click.option("--device", "device_name", default="auto", show_default=True)
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--batch", type=int, default=128, show_default=True)
@click.option("--model", "spec", default="c2f2", show_default=True)
@click.option("--channels", type=int, default=1, show_default=True)
@click.option("--size", "side", type=int, default=28, show_default=True)
@click.option("--gallery", "size", type=int, default=10_000, show_default=True)
@click.option("--repeats", type=int, default=9, show_default=True)
@click.option("--attack", "names", multiple=True, help="Default: those of the papers.")
@click.option("--optimizer", type=click.Choice(["pgd", "apgd"]), default="pgd", show_default=True)
@CSV
def main(
    device_name: str,
    threads: int,
    batch: int,
    spec: str,
    channels: int,
    side: int,
    size: int,
    repeats: int,
    names: tuple[str, ...],
    optimizer: str,
    path: Path | None,
) -> None:
    """Print a row for each attack."""
    torch.manual_seed(0)
    with Compute(device_name, threads=threads).applied() as device:
        model = on_device(parse_model(spec).build(channels, side), device)
        x = torch.nn.functional.normalize(torch.randn(size, DIM, device=device), dim=1)
        labels = torch.arange(size, device=device) % 10
        images = torch.rand(batch, channels, side, side, device=device)
        index = torch.arange(batch, device=device)
        click.echo(f"{spec}, {device}, {threads} threads, batch {batch}, gallery {size} x {DIM}")
        click.echo(f"{'attack':8} {'overhead':>22} {'queries/s':>10} {'set-up':>7} {'MiB':>7}")
        with frozen(model):
            for _ in range(3):
                bare_step(model, images)
            bare_peak = min(peak_mib(lambda: bare_step(model, images), device) for _ in range(5))
            gallery = Gallery(x, labels, "N")
            common = {"model": spec, "size": side, "batch": batch, "gallery": size}
            rows = []
            for name in names or PAPERS:
                ratios, rate, ready, peak = measure(
                    name, model, images, index, gallery, repeats, device, optimizer
                )
                found = {
                    "overhead": spread(ratios, 3),
                    "queries/s": f"{rate:.1f}",
                    "set-up": f"{ready:.1%}",
                    "MiB": str(round(peak - bare_peak)),
                }
                click.echo("{:8} {:>22} {:>10} {:>7} {:>7}".format(name, *found.values()))
                rows.append({"attack": name, **common, **found})
                save(path, rows, device)


def bare_step(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Do a forward pass and the gradient in the input: the minimum of any white-box step."""
    x = images.clone().requires_grad_()
    e = embed(model, x)
    return torch.autograd.grad(e, x, torch.ones_like(e))[0]


def measure(
    name: str,
    model: torch.nn.Module,
    images: torch.Tensor,
    index: torch.Tensor,
    gallery: Gallery,
    repeats: int,
    device: torch.device,
    optimizer: str,
) -> tuple[list[float], float, float, float]:
    """Return the overhead ratio of each repeat, and three numbers.

    These are queries per second at 32 steps, the share of the set-up, and peak memory in MiB.
    """
    attack = ATTACKS.get(name)().resolve(THREAT)
    attack.goal(gallery, index, seed=0)  # neighbours are sorted once in a run, not timed
    ready = clock(lambda: attack.goal(gallery, index, seed=0), device)
    goal = attack.goal(gallery, index, seed=0)
    step, steps = PGD(THREAT.eps, THREAT.alpha, 1, active_set=False), 1
    search: PGD | APGD = step
    if optimizer == "apgd":  # many steps, which share its last forward pass
        steps = APGD_STEPS
        search = APGD(THREAT.eps, 2 * THREAT.eps, steps, active_set=False)
    ratios, seconds = [], []
    for _ in range(repeats):
        bare = clock(lambda: bare_step(model, images), device)
        full = clock(lambda: search.run(lambda x: embed(model, x), images, goal), device) / steps
        ratios.append(full / bare)
        seconds.append(full)
    whole = 32 * statistics.median(seconds) + ready
    peak = peak_mib(lambda: attacked(attack, step, model, images, index, gallery), device)
    return ratios, len(images) / whole, ready / whole, peak


def attacked(
    attack: Attack,
    step: PGD,
    model: torch.nn.Module,
    images: torch.Tensor,
    index: torch.Tensor,
    gallery: Gallery,
) -> None:
    """Choose targets, take one step and compute the outcome, in batches as the harness does."""
    for rows in torch.split(index, attack.most_rows(gallery)):
        goal = attack.goal(gallery, rows, seed=0)
        found = step.run(lambda x: embed(model, x), images[rows], goal)
        goal.outcome(embed(model, found.images).detach())


if __name__ == "__main__":
    main()
