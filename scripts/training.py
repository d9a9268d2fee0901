"""Measure the time of a training step: ``python -m scripts.training [options]``.

The weights have been trained for 30 steps, and the batch is one of fashion-mini. For each defense
and eta the columns are

- step s: seconds of one weight update, including mining;
- full, active: this time, without and with the active set, divided by that of the bare passes: eta
  inner ones (forward, gradient in the images) and one outer one (forward, gradient in the
  parameters), each of as many images as the defense uses;
- saved: share of the inner passes that the active set left out;
- RobRank s, / ours: seconds of RobRank for the same step with the same weights and images, and how
  many times that is ours. HM is RobRank's published objective, "ET", which stops PGD as soon as the
  loss of the batch stands still. It needs ``--robrank FOLDER``, a folder that contains the package
  ``robrank`` of a clone of github.com/cdluminate/robrank.

``--checkpoint`` takes the weights of a trained model instead, and ``--loss`` is the loss of its
last step, by which HM's destination rises: late in a training fewer triplets are left alone.

All alternate in one run. Seconds are medians over the repeats, ratios the medians of the ratios
within a repeat, so that a load that changes meanwhile weighs on both; the least and the greatest
stand in brackets. No test asserts a duration.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import torch

from dmlbench.attacks.engine import pgd
from dmlbench.compute.device import Compute
from dmlbench.compute.distributed import World
from dmlbench.compute.embedding import EmbeddingModel, embed_frozen, frozen, on_device
from dmlbench.core import spec
from dmlbench.datasets.fashion import FashionMini
from dmlbench.defenses import base
from dmlbench.defenses.base import DEFENSES, Batch, Defense, State
from dmlbench.models.small import C2F2
from dmlbench.storage.checkpoint import load_weights
from dmlbench.training.batches import pair_batches
from scripts.record import CSV, save, spread

NAMES = ("none", "est", "act", "hm:ics=0", "hm:ics=0,reuse=true", "hm", "hm:reuse=true")
GROUP = {"none": 0, "est": 1, "act": 2, "hm": 3}  # images of a triplet that are perturbed
RATE = 1e-4


@dataclass
class Workbench:
    """A model and a batch, with methods that are timed."""

    model: EmbeddingModel
    images: torch.Tensor
    labels: torch.Tensor
    device: torch.device
    state: State = field(default_factory=dict)

    def clock(self, work: Callable[[], object]) -> float:
        """Time one call in seconds, until the device has finished all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        begun = time.perf_counter()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - begun

    def step(self, defense: Defense) -> base.StepOutput:
        """Update the weights of a copy of the model once."""
        model = copy.deepcopy(self.model)
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
        generator = torch.Generator(self.device).manual_seed(0)
        embeddings = partial(embed_frozen, model, self.images)
        batch = Batch(self.images, self.labels, embeddings, generator, World())
        step = defense.step(model.train(), batch, dict(self.state))
        assert step.loss is not None
        step.loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return step

    def inner(self, count: int) -> None:
        """Do one bare inner pass: forward and gradient in the images, for ``count`` images."""
        x = self._some(count).requires_grad_()
        with frozen(self.model):
            e = self.model(x)
            torch.autograd.grad(e, x, torch.ones_like(e))

    def outer(self, count: int) -> None:
        """Do one bare outer pass: forward and gradient in the parameters, for ``count`` images."""
        self.model.train()
        e = self.model(self._some(count))
        torch.autograd.grad(e, list(self.model.parameters()), torch.ones_like(e))

    def _some(self, count: int) -> torch.Tensor:
        repeated = self.images.repeat(-(-count // len(self.images)), 1, 1, 1)
        return repeated[:count].clone()


@click.command()
@click.option("--device", "device_name", default="auto", show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--pairs", type=int, default=128, show_default=True)
@click.option("--eta", "etas", type=int, multiple=True, default=(8, 32), show_default=True)
@click.option("--repeats", type=int, default=5, show_default=True)
@click.option(
    "--defense",
    "defenses",
    multiple=True,
    type=click.Choice(["none", "est", "act", "hm"]),
    help="Only these.",
)
@click.option("--checkpoint", type=click.Path(exists=True, path_type=Path))
@click.option("--loss", "last_loss", type=float, help="The loss of the step before, for HM.")
@click.option("--robrank", type=click.Path(exists=True, path_type=Path))
@CSV
def main(
    device_name: str,
    threads: int,
    pairs: int,
    etas: tuple[int, ...],
    repeats: int,
    defenses: tuple[str, ...],
    checkpoint: Path | None,
    last_loss: float | None,
    robrank: Path | None,
    path: Path | None,
) -> None:
    """Print a row for each defense and eta."""
    with Compute(device_name, threads=threads).applied() as device:
        workbench = prepare(pairs, device, checkpoint, last_loss)
        click.echo(f"{device}, {threads} threads, C2F2, {pairs} pairs, torch {torch.__version__}")
        click.echo(
            f"{'defense':28}{'step s':>8}{'full':>19}{'active':>19}{'saved':>7}"
            + (f"{'RobRank s':>11}{'/ ours':>19}" if robrank else "")
        )
        rows = []
        for asked in defenses or NAMES:
            name = asked.partition(":")[0]
            for eta in etas if name != "none" else (0,):
                key = "" if name == "none" else f"{',' if ':' in asked else ':'}eta={eta}"
                text = asked + key
                threat = FashionMini.card.training_threat
                defense = spec.parse(text, DEFENSES).resolve(threat, "N")
                peer = peer_step(robrank, name, defense, workbench) if robrank else None
                found = row(name, defense, eta, workbench, repeats, peer)
                widths = (8, 19, 19, 7, 11, 19)
                values = zip(found.values(), widths, strict=False)
                click.echo(f"{text:28}" + "".join(f"{value:>{width}}" for value, width in values))
                rows.append({"defense": text, "model": "c2f2", "pairs": pairs, **found})
        save(path, rows, device)


def prepare(
    pairs: int, device: torch.device, checkpoint: Path | None = None, loss: float | None = None
) -> Workbench:
    """Take a batch and a C2F2: that of ``checkpoint``, else one trained for 30 steps."""
    torch.manual_seed(0)
    train = FashionMini().load(None).train
    model = C2F2().build(1, 28)
    batches = pair_batches(train.labels, pairs, np.random.default_rng(0))
    if checkpoint is not None:
        load_weights(checkpoint, model)
    model = on_device(model, device)
    if checkpoint is None:
        warm_up(model, [batch_of(train, index, device) for index in batches[:30]])
    state = {} if loss is None else {"previous_loss": torch.tensor(loss, device=device)}
    return Workbench(model, *batch_of(train, batches[0], device), device, state)


def warm_up(model: EmbeddingModel, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Train without defense, a step a batch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    none = spec.parse("none", DEFENSES).resolve(FashionMini.card.training_threat, "N")
    for images, labels in batches:
        generator = torch.Generator(images.device).manual_seed(0)
        batch = Batch(images, labels, partial(embed_frozen, model, images), generator, World())
        step = none.step(model, batch, {})
        assert step.loss is not None
        optimizer.zero_grad()
        step.loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def batch_of(train: Any, batch: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images in [0, 1] and labels at the positions ``batch``."""
    images = torch.from_numpy(train.images[batch]).to(device).float().div_(255)
    return images, torch.from_numpy(train.labels[batch]).to(device)


def row(
    name: str,
    defense: Defense,
    eta: int,
    workbench: Workbench,
    repeats: int,
    peer: Callable[[], object] | None,
) -> dict[str, str]:
    """Time one defense; return column -> value as text."""
    pairs = len(workbench.images) // 2
    group = GROUP[name]
    inner = len(workbench.images) if name == "est" else group * pairs
    outer = {"none": 2, "est": 2, "act": 3, "hm": 3}[name] * pairs
    outer += 2 * pairs if getattr(defense, "ics", 0) else 0
    whole = partial(pgd.PGD, active_set=False)
    times: dict[str, list[float]] = {"full": [], "active": [], "bare": [], "peer": []}
    step = workbench.step(defense)  # warm-up
    if peer is not None:
        peer()
    for _ in range(repeats):
        bare = workbench.clock(lambda: workbench.outer(outer))
        if eta:
            bare += eta * workbench.clock(lambda: workbench.inner(inner))
        times["bare"].append(bare)
        with patch.object(base, "PGD", whole):
            times["full"].append(workbench.clock(lambda: workbench.step(defense)))
        times["active"].append(workbench.clock(lambda: workbench.step(defense)))
        if peer is not None:
            times["peer"].append(workbench.clock(peer))
    median = {key: statistics.median(values) for key, values in times.items() if values}
    ratios = [
        spread([t / b for t, b in zip(times[key], times["bare"], strict=True)])
        for key in ("full", "active")
    ]
    saved = 1 - step.passes / step.full_passes if step.full_passes else 0.0
    found = {
        "step s": f"{median['active']:.3f}",
        "full": ratios[0],
        "active": ratios[1],
        "saved": f"{saved:.1%}",
    }
    if peer is not None:
        found["RobRank s"] = f"{median['peer']:.3f}"
        pairs_of_times = zip(times["peer"], times["active"], strict=True)
        found["RobRank / ours"] = spread([t / o for t, o in pairs_of_times])
    return found


def peer_step(folder: Path, name: str, defense: Defense, workbench: Workbench) -> Callable[[], Any]:
    """Build a function that does RobRank's step for the same defense, weights and batch."""
    from scripts import peer_training

    step = peer_training.robrank_step(folder, name, defense)

    def work() -> None:
        peer = peer_training.Peer(workbench.model, defense, workbench.device).train()
        if workbench.state:
            peer._hm_prev_loss = float(workbench.state["previous_loss"])
        optimizer = torch.optim.Adam(peer.parameters(), lr=RATE)
        with peer_training.margin_zero():
            loss = step(peer, (workbench.images, workbench.labels))
        loss.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return work


if __name__ == "__main__":
    main()
