"""Compare training steps with those of RobRank: ``python -m scripts.peer_training FOLDER``.

FOLDER contains RobRank's package ``robrank``, from a clone of github.com/cdluminate/robrank (it
needs tqdm, termcolor, ujson and pygments). Both take one step of the same defense from the same
weights, on the same batch of fashion-mini, with the same triplets, jitter and coins: RobRank is
given those that ours drew. For each defense the columns are the loss of both, the norm of the
difference of the gradients over the norm of RobRank's, the share of images that ours perturbed, the
share of pixels of all images that are equal, and the PGD steps that RobRank took before it stopped.

``scripts.training`` times the same steps.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import torch

from dmlbench.attacks.engine.optimizer import Perturbed
from dmlbench.compute.device import Compute
from dmlbench.compute.distributed import World
from dmlbench.compute.embedding import EmbeddingModel, embed_frozen
from dmlbench.core import spec
from dmlbench.datasets.fashion import FashionMini
from dmlbench.defenses import acap, base, samplers, shift
from dmlbench.defenses.base import DEFENSES, Batch, Defense
from scripts.peer import import_robrank
from scripts.record import CSV, save
from scripts.training import Workbench, prepare

NAMES = (
    "none",
    "none:loss=snr",
    "est:variant=robrank",
    "act",
    "act:loss=snr",
    "act:loss=contrastive",
    "hm:source=random,ics=0",
    "hm:source=random,destination=semihard,ics=0",
    "hm:source=softhard-robrank,destination=random",
    "hm:source=softhard-robrank",
    "hm:source=softhard-robrank,reuse=true",
    "tbc",
    "amd",
    "amd:sampler=softhard-robrank",
    "acap",
    "rest:variant=robrank",
    "ses:variant=robrank",
)
LOSSES = {"triplet": "ptripletN", "snr": "psnrN", "contrastive": "pcontrastN"}


@dataclass
class Drawn:
    """The random draws of our step, in the order in which RobRank asks for it.

    Attributes:
        triplets: of each call of a sampler: anchors, positives, negatives.
        jitter: (rows, D) in -1, 0, 1, of the first step of an embedding shift.
        coins: one a PGD step of ACAP.
        perturbed: the result of PGD.
        moving: share of the images that it changed.
        moved: (rows, C, H, W) perturbed images of RobRank.
        steps: PGD steps that RobRank took.
    """

    triplets: list[tuple[torch.Tensor, ...]] = field(default_factory=list)
    jitter: torch.Tensor | None = None
    coins: tuple[bool, ...] = ()
    perturbed: Perturbed | None = None
    moving: float = 0.0
    moved: torch.Tensor | None = None
    steps: int = 0


class Peer(torch.nn.Module):
    """The parts of a LightningModule that the steps of RobRank use."""

    dataset, metric, wantsgrad = "fashion", "N", False

    def __init__(self, model: EmbeddingModel, defense: Defense, device: torch.device) -> None:
        super().__init__()
        from robrank import losses  # type: ignore[import-not-found]

        self.loss = LOSSES[getattr(defense, "loss", "triplet")]
        self.backbone, self.device = copy.deepcopy(model.backbone), device
        self.lossfunc = getattr(losses, self.loss)()
        self.config = types.SimpleNamespace(
            advtrain_eps=getattr(defense, "eps", 0),
            advtrain_alpha=getattr(defense, "alpha", 0),
            advtrain_pgditer=getattr(defense, "eta", 0),
        )
        self._hm_prev_loss = 2.0  # RobRank's, of the step before the first
        self.seen: list[torch.Tensor] = []  # images that were embedded in train mode
        self.evaluations = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the raw embeddings (B, D)."""
        if self.training and torch.is_grad_enabled():
            self.seen.append(x.detach())
        self.evaluations += not self.training and torch.is_grad_enabled()
        embeddings: torch.Tensor = self.backbone(x)
        return embeddings

    def log(self, *_: object) -> None:
        """Do nothing."""


def robrank_step(folder: Path, name: str, defense: Any) -> Callable[[Peer, Any], torch.Tensor]:
    """Return a function of a ``Peer`` and a batch that gives the loss of RobRank's step.

    HM is RobRank's "ET", the objective that its models are trained by: it stops PGD early.
    """
    import_robrank(folder)
    from robrank.defenses import amd, est, pnp, ses  # type: ignore[import-not-found]

    def plain(peer: Peer, batch: Any) -> torch.Tensor:
        loss: torch.Tensor = peer.lossfunc(peer(batch[0]), batch[1])
        return loss

    def hm(peer: Peer, batch: Any) -> torch.Tensor:
        kinds = ("random", "semihard", "softhard", "distance")
        source = defense.source.removesuffix("-robrank")
        other = "random" if source != "random" else "semihard"  # LGA does not read it
        destination = defense.destination if defense.destination in kinds else other
        loss: torch.Tensor = amd.hm_training_step(
            peer,
            batch,
            0,
            hm="ET",
            srch=f"spc2-{source}",
            desth=f"spc2-{destination}",
            gradual=defense.destination == "lga",
            ics=defense.ics > 0,
        )
        return loss

    steps = {
        "est": est.est_training_step,
        "act": pnp.pnp_training_step,
        "tbc": pnp.tbc_training_step,
        "acap": pnp.acap_training_step,
        "rest": pnp.rest_training_step,
        "amd": amd.amd_training_step,
        "ses": ses.ses_training_step,
    }
    if name in steps:
        return lambda peer, batch: steps[name](peer, batch, 0)
    return {"none": plain, "hm": hm}[name]


def triplet_margin_loss(
    a: torch.Tensor, p: torch.Tensor, n: torch.Tensor, margin: float
) -> torch.Tensor:
    """PyTorch's, with the margin 0 of RobRank's ICS, which PyTorch of today refuses."""
    distance = torch.nn.functional.pairwise_distance
    return (distance(a, p) - distance(a, n) + margin).clamp(min=0).mean()


def margin_zero() -> Any:
    """A patch that lets RobRank take the triplet loss with margin 0."""
    return patch.object(torch.nn.functional, "triplet_margin_loss", triplet_margin_loss)


def ours(workbench: Workbench, defense: Defense) -> tuple[float, torch.Tensor, Drawn]:
    """Take our step; return the loss, its gradient, and what was drawn."""
    drawn, model = Drawn(), copy.deepcopy(workbench.model)
    real_sample, real_offset = samplers.sample, shift.ShiftDefense.first_offset
    real_perturb, real_coin = base.AdversarialDefense.perturb, acap.CoinObjective

    def sample(*arguments: Any) -> Any:
        found = real_sample(*arguments)
        drawn.triplets.append((found.anchor, found.positive, found.negative))
        return found

    def first_offset(self: Any, batch: Batch, rows: int, images: int = 1) -> torch.Tensor:
        found = real_offset(self, batch, rows, images)
        drawn.jitter = (found / shift.NUDGE).round().transpose(0, 1).flatten(0, 1)
        return found

    def perturb(self: Any, *arguments: Any) -> Perturbed:
        found = drawn.perturbed = real_perturb(self, *arguments)
        moved = (found.images != arguments[1]).flatten(2).any(2)
        drawn.moving = float(moved.double().mean())
        return found

    def coin(metric: Any, offset: float, collapse: tuple[bool, ...]) -> Any:
        drawn.coins = collapse
        return real_coin(metric, offset, collapse)

    generator = torch.Generator(workbench.device).manual_seed(0)
    embeddings = partial(embed_frozen, model, workbench.images)
    companion = defense.companion(10, 512, "N")
    batch = Batch(workbench.images, workbench.labels, embeddings, generator, World(), companion)
    with (
        patch.object(base, "sample", sample),
        patch.object(shift.ShiftDefense, "first_offset", first_offset),
        patch.object(base.AdversarialDefense, "perturb", perturb),
        patch.object(acap, "CoinObjective", coin),
    ):
        step = defense.step(model.train(), batch, {})
    assert step.loss is not None
    return float(step.loss.detach()), _gradient(step.loss, model), drawn


def theirs(
    folder: Path, name: str, workbench: Workbench, defense: Defense, drawn: Drawn
) -> tuple[float, torch.Tensor]:
    """Take RobRank's step with what ours ``drawn``; return the loss and its gradient."""
    step = robrank_step(folder, name, defense)
    from robrank.attacks import advrank  # type: ignore[import-not-found]
    from robrank.defenses import amd, pnp
    from robrank.losses import contrastive, snr, triplet  # type: ignore[import-not-found]

    peer = Peer(workbench.model, defense, workbench.device).train()
    asked: Iterator[tuple[torch.Tensor, ...]] = iter(drawn.triplets)

    def in_turn(*_: object, **__: object) -> tuple[torch.Tensor, ...]:
        return next(asked, drawn.triplets[-1])

    def last(*_: object, **__: object) -> tuple[torch.Tensor, ...]:
        return drawn.triplets[-1]

    coins = iter(drawn.coins)
    with ExitStack() as stack:
        for module in (amd, pnp):
            stack.enter_context(patch.object(module, "miner", in_turn))
        for module in (triplet, snr, contrastive):
            stack.enter_context(patch.object(module, "miner", last))
        stack.enter_context(margin_zero())
        if drawn.jitter is not None:
            jitter = drawn.jitter
            stack.enter_context(patch.object(advrank.th, "randint_like", lambda *_, **__: jitter))
        if drawn.coins:
            stack.enter_context(patch.object(np.random, "random", lambda: float(next(coins))))
        loss = step(peer, (workbench.images, workbench.labels)).mean()
    gradient = _gradient(loss, peer)
    drawn.steps = peer.evaluations
    if drawn.perturbed is not None:
        rows = drawn.perturbed.images.flatten(0, 1)
        several = [x for x in peer.seen if len(x) >= len(rows)]
        chosen = several[0] if name == "act" else several[-1]
        drawn.moved = chosen[len(chosen) - len(rows) :]
    return float(loss.detach()), gradient


def _gradient(loss: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    backbone: Any = model.backbone
    found = torch.autograd.grad(loss, list(backbone.parameters()))
    return torch.cat([one.flatten() for one in found])


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--pairs", type=int, default=32, show_default=True)
@click.option("--eta", type=int, default=8, show_default=True)
@CSV
def main(folder: Path, pairs: int, eta: int, path: Path | None) -> None:
    """Print a row for each defense."""
    rows: list[dict[str, str]] = []
    with Compute("cpu", threads=1).applied() as device:
        workbench = prepare(pairs, device)
        heads = ("defense", "loss", "RobRank", "gradient", "moved", "pixels", "steps")
        click.echo("{:48}{:>10}{:>10}{:>10}{:>7}{:>8}{:>7}".format(*heads))
        for text in NAMES:
            name = text.partition(":")[0]
            shown = text if name == "none" else f"{text}{',' if ':' in text else ':'}eta={eta}"
            threat = FashionMini.card.training_threat
            defense = spec.parse(shown, DEFENSES).resolve(threat, "N")
            our_loss, gradient, drawn = ours(workbench, defense)
            their_loss, reference = theirs(folder, name, workbench, defense, drawn)
            pixels = perturbed = ""
            if drawn.perturbed is not None and drawn.moved is not None:
                mine = drawn.perturbed.images.transpose(0, 1).flatten(0, 1)
                perturbed = f"{drawn.moving:.3f}"
                pixels = f"{((mine - drawn.moved).abs() < 1e-6).double().mean():.4f}"
            row = {
                "defense": shown,
                "loss": f"{our_loss:.6f}",
                "RobRank": f"{their_loss:.6f}",
                "gradient": f"{(gradient - reference).norm() / reference.norm():.1e}",
                "perturbed": perturbed,
                "pixels equal": pixels,
                "PGD steps": str(drawn.steps or ""),
            }
            click.echo("{:48}{:>10}{:>10}{:>10}{:>7}{:>8}{:>7}".format(*row.values()))
            rows.append({**row, "pairs": str(pairs)})
        save(path, rows, device)


if __name__ == "__main__":
    main()
