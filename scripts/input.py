"""Measure how fast images are loaded: ``python -m scripts.input [options]``.

Run it in the root of the repository. It compares

- cache: the way of dmlbench: rows of the memory-mapped cache, cropped and flipped on the device;
- ImageFolder: the way of torchvision: DataLoader workers decode, resize, crop and flip each image;
- network: the forward pass of an evaluation, and the step that an attack takes 32 times.

The three alternate in one run, and the median of the ratios is reported, which a noisy machine
hardly changes. Without ``--root`` a folder of pictures of the size in CUB (500 x 375) is created.
No test asserts a duration.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from dmlbench.compute.device import Compute, processors
from dmlbench.compute.embedding import embed, frozen, on_device
from dmlbench.datasets.base import RetrievalData
from dmlbench.datasets.files.cache import Cache
from dmlbench.datasets.folder import Folder
from dmlbench.models.base import parse_model
from scripts.overhead import bare_step, clock
from tests import trees


@click.command()
@click.option("--root", type=click.Path(path_type=Path, exists=True), help="Class folders.")
@click.option("--device", "device_name", default="auto", show_default=True)
@click.option("--model", default="resnet18:weights=none", show_default=True)
@click.option("--batch", type=int, default=112, show_default=True)
@click.option("--repeats", type=int, default=9, show_default=True)
@click.option("--workers", type=int, default=processors(), show_default=True)
def main(
    root: Path | None, device_name: str, model: str, batch: int, repeats: int, workers: int
) -> None:
    """Print images per second, and ratios."""
    with tempfile.TemporaryDirectory() as folder, Compute(device_name).applied() as device:
        root = root or trees.folder(Path(folder) / "set", 10, 40, size=(500, 375))
        cache = Cache(Path(folder) / "cache")
        loaded: list[RetrievalData] = []
        seconds = clock(lambda: loaded.append(Folder(root=str(root)).load(None, cache)), device)
        data = loaded[0]
        count = len(data.train) + len(data.test)
        click.echo(f"{device}, {processors()} processors, batch {batch}")
        click.echo(f"decoding once       {count / seconds:8.0f} images/s ({count} images)")
        ours, theirs = cached(data, batch, device), image_folder(root, batch, workers, device)
        network = on_device(parse_model(model).build(data.channels, data.size), device)
        with frozen(network):
            compare(ours, theirs, network, batch, workers, repeats, device)


def cached(data: RetrievalData, batch: int, device: torch.device) -> Iterator[torch.Tensor]:
    """Yield training batches from the cache, endlessly."""
    draws, generator = np.random.default_rng(0), torch.Generator(device).manual_seed(0)
    while True:
        index = draws.integers(0, len(data.train), batch)
        yield data.training_pixels(data.train.batch(index, device), generator)


def image_folder(
    root: Path, batch: int, workers: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """Yield training batches as the published code loads them, endlessly."""
    steps = [
        transforms.Resize((256, 256)),
        transforms.RandomCrop((224, 224)),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
    ]
    files = ImageFolder(str(root), transforms.Compose(steps))
    if len(files) < batch:
        raise click.ClickException(f"{root} has {len(files)} images: take a smaller --batch")
    loader = DataLoader(
        files,
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    for _ in itertools.count():
        for images, _ in loader:
            yield images.to(device)


def compare(
    ours: Iterator[torch.Tensor],
    theirs: Iterator[torch.Tensor],
    network: torch.nn.Module,
    batch: int,
    workers: int,
    repeats: int,
    device: torch.device,
) -> None:
    """Time the three alternately, and print the results.

    The workers of the loader prefetch batches while the others are timed. These batches are taken
    out first, so that only newly loaded ones are timed.
    """
    images = next(ours)
    for _ in range(4):
        next(theirs)
    times: dict[str, list[float]] = {
        name: [] for name in ("cache", "ImageFolder", "network", "step")
    }
    with torch.no_grad():
        embed(network, images)
    for _ in range(repeats):
        times["cache"].append(clock(lambda: next(ours), device))
        for _ in range(2 * workers + 2):  # a loader keeps two batches for each worker
            next(theirs)
        times["ImageFolder"].append(clock(lambda: [next(theirs) for _ in range(4)], device) / 4)
        with torch.no_grad():
            times["network"].append(clock(lambda: embed(network, images), device))
        times["step"].append(clock(lambda: bare_step(network, images), device))
    for name, seconds in times.items():
        click.echo(f"{name:19} {batch / statistics.median(seconds):8.0f} images/s")

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))

    click.echo(f"cache against ImageFolder: {ratio('ImageFolder', 'cache'):.1f} times as fast")
    click.echo(f"input in an embedding pass: {ratio('cache', 'network'):.1%} of the network's time")
    click.echo(f"input in an attack of 32 steps: {ratio('cache', 'step') / 32:.2%}")


if __name__ == "__main__":
    main()
