"""Compare steps of ``ca-tride`` with its authors' code: ``python -m scripts.peer_tride FOLDER``.

FOLDER is a clone of github.com/michaeltian108/CA-TRIDE (commit 55366aa). Its training step reads
names that are defined nowhere, so the parts that run are called as that step calls them: the miner,
``CAP`` or ``ANP``, and the loss. Both codes get the same weights, batch of fashion-mini, negatives
and progress. For each kind of batch the columns are the loss of both, the norm of the difference of
the gradients over the norm of theirs, the share of perturbed pixels that are equal, and the anchors
that may draw the same negatives in both, of all anchors.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import random
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import torch

from dmlbench.compute.device import Compute
from dmlbench.compute.distributed import World
from dmlbench.compute.embedding import embed_frozen
from dmlbench.core import spec
from dmlbench.datasets.fashion import FashionMini
from dmlbench.defenses import base, samplers
from dmlbench.defenses.base import DEFENSES, Batch, Defense
from dmlbench.defenses.ca_tride import TURN
from scripts.peer import Backbone
from scripts.record import CSV, save
from scripts.training import Workbench, prepare

EPOCHS = 8
ABSENT = ("sklearn", "sklearn.metrics", "tensorflow", "models", "models.template_rank", "datasets")


def import_tride(folder: Path) -> tuple[Any, Any, Any]:
    """Import the authors' ``pnp``, ``triplet`` and ``miner`` without what they do not use."""
    for name in (*ABSENT, "configs", "utility", "utility.utils", "attacks", "defenses", "losses"):
        sys.modules[name] = types.ModuleType(name)
    modules: dict[str, Any] = sys.modules
    modules["sklearn.metrics"].dcg_score = modules["attacks"].AdvRank = None
    modules["models"].template_rank = modules["models.template_rank"]
    modules["utility"].utils = modules["utility.utils"]
    for name in ("defenses", "losses"):
        modules[name].__path__ = [str(folder / name)]
    with contextlib.redirect_stdout(io.StringIO()):  # one of them prints a poem
        names = ("losses.miner", "defenses.pnp", "losses.triplet")
        miner, pnp, triplet = (importlib.import_module(name) for name in names)
    for name in ABSENT:
        del sys.modules[name]
    return pnp, triplet, miner


def ours(
    workbench: Workbench, defense: Defense, anchors: bool, progress: float
) -> tuple[float, torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor | None]:
    """Take our step; return the loss, its gradient, the triplets and what PGD made of images."""
    drawn: list[tuple[torch.Tensor, ...]] = []
    moved: list[torch.Tensor] = []
    real_sample, real_perturb = samplers.sample, base.AdversarialDefense.perturb

    def sample(*arguments: Any) -> Any:
        found = real_sample(*arguments)
        drawn.append((found.anchor, found.positive, found.negative))
        return found

    def perturb(self: Any, *arguments: Any, **options: Any) -> Any:
        found = real_perturb(self, *arguments, **options)
        moved.append(found.images.clone())
        return found

    model = workbench.model
    generator = torch.Generator().manual_seed(0)
    batch = Batch(
        workbench.images,
        workbench.labels,
        partial(embed_frozen, model, workbench.images),
        generator,
        World(),
        progress=progress,
    )
    with (
        patch.object(base, "sample", sample),
        patch.object(base.AdversarialDefense, "perturb", perturb),
    ):
        step = defense.step(model.train(), batch, {TURN: torch.tensor(float(anchors))})
    assert step.loss is not None
    gradient = _gradient(step.loss, model)
    return float(step.loss.detach()), gradient, drawn[0], moved[0] if moved else None


def theirs(
    modules: tuple[Any, Any, Any],
    workbench: Workbench,
    defense: Any,
    triplets: tuple[torch.Tensor, ...],
    anchors: bool,
    epoch: int,
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Call the authors' functions; return the loss, its gradient and the perturbed images."""
    pnp, triplet, _ = modules
    model, images = Backbone(workbench.model), workbench.images
    pnp.lbd = defense.lambda_
    triplet.last_modify_epoch = float(anchors)  # its loss adds the last term in every second call
    attack = pnp.PositiveNegativePerplexing(
        model, defense.eps, defense.alpha, defense.eta, "cpu", "N"
    )
    normalize = torch.nn.functional.normalize
    a, p, n = triplets
    if anchors:
        moved = attack.ANP(images, triplets, "", "", "", epoch, EPOCHS)
        model.train()
        e = [normalize(model(x)) for x in (moved, images[p], images[n])]
        shown = moved[:, None]
    else:
        moved = attack.CAP(images, triplets, "", "", "", epoch, EPOCHS, len(images))
        model.train()
        both = normalize(model(moved))
        e = [normalize(model(images[a])), both[: len(a)], both[len(a) :]]
        shown = torch.stack([moved[: len(a)], moved[len(a) :]], dim=1)
    loss = triplet.fn_ptriplet_kernel(*e, metric="N", margin=0.2)
    return float(loss.detach()), _gradient(loss, workbench.model), shown


def negatives_that_may_be_drawn(
    miner: Any, workbench: Workbench, triplets: tuple[torch.Tensor, ...], progress: float
) -> int:
    """The count of our negatives that the authors' miner may draw for the same anchor."""
    e = embed_frozen(workbench.model, workbench.images)
    offered: list[set[int]] = []

    def choose(options: torch.Tensor) -> torch.Tensor:
        offered.append(set(options.tolist()))
        return options[0]

    with patch.object(random, "choice", choose):
        miner.miner(
            e, workbench.labels, progress * EPOCHS, EPOCHS, "", method="spc2-ghard", metric="N"
        )
    return sum(
        int(n) in offered[int(a) // 2] for a, n in zip(triplets[0], triplets[2], strict=True)
    )


def _gradient(loss: torch.Tensor, model: Any) -> torch.Tensor:
    found = torch.autograd.grad(loss, list(model.backbone.parameters()))
    return torch.cat([one.flatten() for one in found])


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--pairs", type=int, default=32, show_default=True)
@CSV
def main(folder: Path, pairs: int, path: Path | None) -> None:
    """Print a row for each kind of batch."""
    modules = import_tride(folder)
    rows: list[dict[str, str]] = []
    with Compute("cpu", threads=1).applied() as device:
        workbench = prepare(pairs, device)
        heads = ("lambda", "kind", "epoch", "loss", "theirs", "gradient", "pixels", "negatives")
        click.echo("{:8}{:6}{:>6}{:>10}{:>10}{:>10}{:>8}{:>10}".format(*heads))
        for sharpness in (10.0, 9.5, 2.0):
            for anchors in (False, True):
                for epoch in (1, 3):
                    defense = spec.parse(f"ca-tride:lambda={sharpness}", DEFENSES)
                    defense = defense.resolve(FashionMini.card.training_threat, "N")
                    progress = epoch / EPOCHS
                    loss, gradient, triplets, moved = ours(workbench, defense, anchors, progress)
                    assert moved is not None
                    other, reference, shown = theirs(
                        modules, workbench, defense, triplets, anchors, epoch
                    )
                    known = negatives_that_may_be_drawn(modules[2], workbench, triplets, progress)
                    row = {
                        "lambda": f"{sharpness:g}",
                        "kind": "ANP" if anchors else "CAP",
                        "epoch": str(epoch),
                        "loss": f"{loss:.6f}",
                        "theirs": f"{other:.6f}",
                        "gradient": f"{(gradient - reference).norm() / reference.norm():.1e}",
                        "pixels equal": f"{((moved - shown).abs() < 1e-6).double().mean():.4f}",
                        "negatives": f"{known}/{len(triplets[0])}",
                    }
                    line = "{:8}{:6}{:>6}{:>10}{:>10}{:>10}{:>8}{:>10}"
                    click.echo(line.format(*row.values()))
                    rows.append({**row, "pairs": str(pairs)})
        save(path, rows, device)


if __name__ == "__main__":
    main()
