"""What an attack costs beyond the network: ``python -m scripts.overhead [options]``.

For each attack, on random images and embeddings (``--model resnet18 --channels 3 --size 224`` for
those of the 224 px suite):

- overhead: one full PGD step / (bare forward + gradient in the input, parameters frozen), the two
  in turn in one run, median of the ratios: it survives a noisy machine;
- queries/s: at the protocol's 32 steps, from the median step;
- set-up: the share of the attack that choosing targets and sorting adds to the 32 steps;
- memory: peak of choosing targets and one step, beyond what the bare step takes.

Durations are never asserted in a test.
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
from dmlbench.attacks.engine.pgd import PGD
from dmlbench.compute.device import Compute
from dmlbench.compute.embedding import embed, frozen
from dmlbench.compute.embedding import place as on_device
from dmlbench.datasets.mnist import THREAT
from dmlbench.models.base import parse_model
from scripts.record import CSV, save

DIM = 512


def clock(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def peak_mib(work: Callable[[], object], device: torch.device) -> float:
    """Most memory in MiB that ``work`` held beyond what was there, on the device it runs on."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is held now
    before = resident("VmRSS")
    work()
    return (resident("VmHWM") - before) / 1024


def resident(key: str) -> int:
    """KiB from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


@click.command()
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--batch", type=int, default=128, show_default=True)
@click.option("--model", "spec", default="c2f2", show_default=True)
@click.option("--channels", type=int, default=1, show_default=True)
@click.option("--size", "side", type=int, default=28, show_default=True)
@click.option("--gallery", "size", type=int, default=10_000, show_default=True)
@click.option("--repeats", type=int, default=9, show_default=True)
@click.option("--attack", "names", multiple=True, help="Default: every registered one.")
@CSV
def main(
    device: str,
    threads: int,
    batch: int,
    spec: str,
    channels: int,
    side: int,
    size: int,
    repeats: int,
    names: tuple[str, ...],
    path: Path | None,
) -> None:
    """Print a row an attack."""
    torch.manual_seed(0)
    with Compute(device, threads=threads).applied() as place:
        model = on_device(parse_model(spec).build(channels, side), place)
        x = torch.nn.functional.normalize(torch.randn(size, DIM, device=place), dim=1)
        labels = torch.arange(size, device=place) % 10
        images = torch.rand(batch, channels, side, side, device=place)
        index = torch.arange(batch, device=place)
        click.echo(f"{spec}, {place}, {threads} threads, batch {batch}, gallery {size} x {DIM}")
        click.echo(f"{'attack':8} {'overhead':>9} {'queries/s':>10} {'set-up':>7} {'MiB':>7}")
        with frozen(model):
            for _ in range(3):
                bare_step(model, images)
            bare_peak = peak_mib(lambda: bare_step(model, images), place)
            gallery = Gallery(x, labels, "N")
            common = {"model": spec, "size": side, "batch": batch, "gallery": size}
            rows = []
            for name in names or ATTACKS.names():
                ratio, rate, ready, peak = measure(
                    name, model, images, index, gallery, repeats, place
                )
                found = {
                    "overhead": f"{ratio:.3f}",
                    "queries/s": f"{rate:.1f}",
                    "set-up": f"{ready:.1%}",
                    "MiB": str(round(peak - bare_peak)),
                }
                click.echo("{:8} {:>9} {:>10} {:>7} {:>7}".format(name, *found.values()))
                rows.append({"attack": name, **common, **found})
        save(path, rows, place)


def bare_step(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """A forward pass and the gradient in the input: the least a white-box step can cost."""
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
) -> tuple[float, float, float, float]:
    """Overhead ratio, queries a second at 32 steps, share of the set-up, peak memory in MiB."""
    attack = ATTACKS.get(name)().resolve(THREAT)
    attack.goal(gallery, index, seed=0)  # neighbours are found once and shared by a run
    ready = clock(lambda: attack.goal(gallery, index, seed=0), device)
    goal = attack.goal(gallery, index, seed=0)
    step = PGD(THREAT.eps, THREAT.alpha, 1, active_set=False)
    ratios, seconds = [], []
    for _ in range(repeats):
        bare = clock(lambda: bare_step(model, images), device)
        full = clock(lambda: step.run(lambda x: embed(model, x), images, goal), device)
        ratios.append(full / bare)
        seconds.append(full)
    whole = 32 * statistics.median(seconds) + ready
    peak = peak_mib(lambda: attacked(attack, step, model, images, index, gallery), device)
    return statistics.median(ratios), len(images) / whole, ready / whole, peak


def attacked(
    attack: Attack,
    step: PGD,
    model: torch.nn.Module,
    images: torch.Tensor,
    index: torch.Tensor,
    gallery: Gallery,
) -> None:
    """Targets, one step and the outcome, in batches as the harness makes them."""
    for rows in torch.split(index, attack.most_rows(gallery)):
        goal = attack.goal(gallery, rows, seed=0)
        found = step.run(lambda x: embed(model, x), images[rows], goal)
        goal.outcome(embed(model, found.images).detach())


if __name__ == "__main__":
    main()
