"""R@1 of collapsed models in float64: ``python -m scripts.contracted RESULTS --csv FILE``.

A model whose embeddings are nearly one point may still tell images apart: the differences are lost
in float32. For each model of RESULTS whose mean cosine is above 0.99 the columns are

- R@1: as it is measured, where equally near items count against the model, and two squared
  distances are equal if they differ by less than 1e-6;
- R@1 float32: by ``torch.cdist``, as RobRank computes distances, and the nearest item, whichever;
- R@1 float64: the same with weights, embeddings and distances in float64;
- nearest: median distance of an image from the nearest other one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch

import dmlbench
from dmlbench.core import spec
from dmlbench.datasets.base import DATASETS
from dmlbench.metrics.collapse import MEAN_COSINE_LIMIT
from dmlbench.storage.store import Store
from scripts.record import CSV, save


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@CSV
def main(results: Path, path: Path | None) -> None:
    """Print a row for each model."""
    torch.set_num_threads(1)
    rows = []
    for cell in Store(results).cells():
        cosine = cell.findings.get("mean_cosine", 0)
        if cosine <= MEAN_COSINE_LIMIT:
            continue
        about = cell.about
        test = spec.parse(about.dataset, DATASETS).load(None).test
        images, labels = torch.from_numpy(test.images) / 255, torch.from_numpy(test.labels)
        model = dmlbench.load_model(
            {"checkpoint_sha256": cell.facts["checkpoint"]}, results=results
        )
        found = {}
        for kind, name in ((torch.float32, "float32"), (torch.float64, "float64")):
            with torch.no_grad():
                e = model.to(kind)(images.to(kind))
            exact = "use_mm_for_euclid_dist_if_necessary"
            if kind == torch.float64:
                exact = "donot_use_mm_for_euclid_dist"
            distance = torch.cdist(e, e, compute_mode=exact).fill_diagonal_(torch.inf)
            found[name] = 100 * float((labels[distance.argmin(1)] == labels).double().mean())
        row: dict[str, Any] = {
            "defense": about.defense,
            "seed": about.seed,
            "mean cosine": f"{cosine:.7f}",
            "R@1": f"{cell.metrics['R@1'].value:.1f}",
            **{f"R@1 {name}": f"{value:.1f}" for name, value in found.items()},
            "nearest": f"{float(distance.min(1).values.median()):.1e}",
        }
        click.echo("  ".join(f"{key} {value}" for key, value in row.items()))
        rows.append(row)
    rows.sort(key=lambda row: (-float(row["mean cosine"]), row["defense"], row["seed"]))
    save(path, rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
