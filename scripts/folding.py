"""Measure what folding batch norms saves: ``python -m scripts.folding [--csv FILE]``.

For each network: forward passes with the gradient in the images, as an attack step needs them, of
the network as it is and with its batch norms folded (``dmlbench.compute.folding``). Both alternate
in one run. ``ratio`` is the median of the ratios of their times, above 1 where folding is faster.
On a CPU images pass one by one, as they do in an evaluation. Weights and images are random.
"""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path

import click
import torch

from dmlbench.compute.device import Compute
from dmlbench.compute.embedding import EmbeddingModel, embed, frozen, on_device
from dmlbench.compute.folding import folded
from dmlbench.models.base import parse_model
from scripts.overhead import clock
from scripts.record import CSV, save, spread

NETWORKS = {
    "mobilenet_v2:head=none,weights=none": 224,
    "resnet18:weights=none": 224,
    "timm:name=tf_efficientnet_lite0,weights=none": 224,
    "resnet50:weights=none": 224,
}


def step(model: EmbeddingModel, images: torch.Tensor) -> None:
    """Take the gradient of a sum of the embeddings in the images."""
    x = images.clone().requires_grad_()
    torch.autograd.grad(embed(model, x).sum(), x)


@click.command()
@click.option("--images", "count", default=8, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@CSV
def main(count: int, repeats: int, device: str, path: Path | None) -> None:
    """Print a row for each network."""
    rows: list[dict[str, object]] = []
    with Compute(device, threads=1).applied() as place:
        click.echo(
            "{:50}{:>6}{:>12}{:>12}{:>20}".format("network", "size", "plain", "folded", "ratio")
        )
        for text, size in NETWORKS.items():
            torch.manual_seed(0)
            model = on_device(parse_model(text).build(3, size), place)
            images = torch.rand(count, 3, size, size, device=place)
            with frozen(model):
                both = (model, folded(model, images))
                works = [partial(step, one, images) for one in both]
                timed = [[clock(work, place) for work in works] for _ in range(repeats + 1)]
            seconds = timed[1:]  # the first pass is a warm-up
            row = {
                "network": text,
                "size": size,
                "images/s": f"{count / statistics.median(one for one, _ in seconds):.1f}",
                "folded images/s": f"{count / statistics.median(two for _, two in seconds):.1f}",
                "ratio": spread([one / two for one, two in seconds]),
            }
            click.echo("{:50}{:>6}{:>12}{:>12}{:>20}".format(*row.values()))
            rows.append(row)
        save(path, rows, place)


if __name__ == "__main__":
    main()
