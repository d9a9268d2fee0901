"""Mean and variance of hardness by triplet sampler: ``python -m scripts.hardness --dataset cub``.

HM's Table 1 (CVPR 2022). Batches are drawn as in training: SPC-2, cut and flipped at random where
the data set says so. The network stays as it is, in eval mode, with the weights that training
starts from, or those of a checkpoint. Each sampler draws one triplet for each pair of a batch, all
of the same batches, with H = d(a, p) - d(a, n).

E[H] is the mean. The paper calls its figures average statistics over mini-batches and does not say
of what Var[H] is; so both are printed: the variance over the triplets of a batch, averaged over the
batches, and the variance of the batches' means (about the former divided by the pairs).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch

from dmlbench.common.hashing import derived_seed
from dmlbench.compute.device import Compute
from dmlbench.compute.embedding import EmbeddingModel, embed, frozen, on_device
from dmlbench.core import spec
from dmlbench.datasets.base import DATASETS, RetrievalData
from dmlbench.defenses.base import MARGIN, hardness
from dmlbench.defenses.samplers import SAMPLERS, sample
from dmlbench.models.base import canonical_model, parse_model
from dmlbench.storage import checkpoint
from dmlbench.training.batches import pair_batches
from scripts.record import CSV, save

Statistics = dict[str, tuple[float, float, float]]
"""Sampler -> mean hardness, variance within a batch (averaged), variance of the batches' means."""


def batches(
    data: RetrievalData, pairs: int, count: int, seed: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield ``count`` batches: images (2B, C, H, W) in [0, 1], and labels (2B,).

    A new epoch begins where one ends.
    """
    order = np.random.default_rng(derived_seed(seed, "batches"))
    crops = torch.Generator(device).manual_seed(derived_seed(seed, "crops"))
    labels = torch.from_numpy(data.train.labels).to(device)
    left: list[np.ndarray] = []
    for _ in range(count):
        left = left or pair_batches(data.train.labels, pairs, order)
        index = left.pop(0)
        images = data.training_pixels(data.train.batch(index, device), crops)
        yield images, labels[torch.from_numpy(index).to(device)]


def statistics(
    model: EmbeddingModel, data: RetrievalData, pairs: int, count: int, seed: int
) -> Statistics:
    """Measure every sampler on ``count`` batches of ``pairs`` pairs."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(derived_seed(seed, "triplets"))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in SAMPLERS}
    for images, labels in batches(data, pairs, count, seed, device):
        e = embed(model, images)
        for name, moments in found.items():
            triplets = sample(name, e, labels, model.metric, MARGIN[model.metric], generator)
            if len(triplets) > 1:
                h = hardness(e[triplets.stack()], model.metric).double()
                moments.append((float(h.mean()), float(h.var(correction=0))))
    table = {name: np.array(moments).T for name, moments in found.items() if moments}
    return {
        name: (float(means.mean()), float(variances.mean()), float(means.var()))
        for name, (means, variances) in table.items()
    }


@click.command()
@click.option("--dataset", default="cub", show_default=True, metavar="SPEC")
@click.option("--model", metavar="SPEC", help="Network. Default: the data set's.")
@click.option(
    "--checkpoint", "weights", type=click.Path(path_type=Path), help="Weights to take instead."
)
@click.option("--batches", "count", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1))
@click.option("--data-root", type=click.Path(path_type=Path))
@CSV
def main(
    dataset: str,
    model: str | None,
    weights: Path | None,
    count: int,
    seed: int,
    device: str,
    threads: int | None,
    data_root: Path | None,
    path: Path | None,
) -> None:
    """Print mean and variance of hardness for each sampler."""
    chosen = spec.parse(dataset, DATASETS)
    network, pairs = parse_model(model or chosen.protocol.model), chosen.protocol.recipe.pairs
    data = chosen.load(data_root)
    with Compute(device, threads=threads).applied() as place, torch.no_grad():
        torch.manual_seed(derived_seed(seed, "init"))
        built = network.build(data.channels, data.size, initial=weights is None)
        if weights is not None:
            checkpoint.load_weights(weights, built)
        with frozen(on_device(built, place)):
            found = statistics(built, data, pairs, count, seed)
        click.echo(f"{dataset}, {canonical_model(network)}, {count} batches of {pairs} pairs")
        click.echo(
            "{:18}{:>9}{:>17}{:>19}".format(
                "sampler", "E[H]", "Var[H] in batch", "Var of batch mean"
            )
        )
        rows = []
        for name, (mean, within, between) in found.items():
            click.echo(f"{name:18}{mean:>9.3f}{within:>17.5f}{between:>19.5f}")
            row = {"sampler": name, "mean": f"{mean:.4f}", "variance in a batch": f"{within:.6f}"}
            row["variance of the batch mean"] = f"{between:.6f}"
            shown = {"dataset": dataset, "model": canonical_model(network), "batches": count}
            rows.append(row | shown | {"checkpoint": weights.name if weights else "initial"})
        save(path, rows, place)


if __name__ == "__main__":
    main()
