"""Train a model with a defense: seeded, resumable an epoch at a time, stopped when it diverges.

Every random number of an epoch comes from (seed, epoch), so a run that was interrupted and one
that was not end with the same weights.
"""

from __future__ import annotations

import hashlib
import io
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dmlbench import checkpoint, spec
from dmlbench.compute import Compute, pixels
from dmlbench.datasets.base import RetrievalData
from dmlbench.defenses.base import Clean, Defense, State
from dmlbench.embedding import EmbeddingModel, embed
from dmlbench.errors import CellError, UserError
from dmlbench.files import write_atomically
from dmlbench.identity import derived_seed, identity
from dmlbench.metrics.collapse import MEAN_COSINE_LIMIT
from dmlbench.models.base import Model, canonical_model
from dmlbench.progress import Reporter, Task
from dmlbench.provenance import provenance
from dmlbench.recipe import Recipe

TRAINING_VERSION = 1  # raised when the engine changes what it computes
STATE = "state.pt"


@dataclass(frozen=True)
class Training:
    """All that decides the weights of a model, resolved.

    Attributes:
        dataset: canonical spec of the data set (for people; the digest decides).
        digest: content digest of the data.
        model: the network.
        defense: how it is trained, no field ``auto``.
        recipe: for how long.
        seed: of initialisation, batches and mining.
    """

    dataset: str
    digest: str
    model: Model
    defense: Defense
    recipe: Recipe
    seed: int

    @property
    def facts(self) -> dict[str, Any]:
        """JSON-able identity facts."""
        return {
            "kind": "training",
            "training_version": TRAINING_VERSION,
            "data": self.digest,
            "model": canonical_model(self.model),
            "model_version": self.model.card.version,
            "defense": self.defense.card.name,
            "defense_version": self.defense.card.version,
            "defense_values": spec.values(self.defense),
            "recipe": spec.values(self.recipe),
            "seed": self.seed,
        }

    @property
    def id(self) -> str:
        """Identity of the training run."""
        return identity(self.facts)


@dataclass
class Epoch:
    """Running sums of an epoch, on the device until they are read."""

    steps: int = 0
    loss: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    hardness: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    spread: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    passes: int = 0
    full_passes: int = 0

    def summary(self) -> dict[str, float]:
        """Means over the steps, and the share of adversarial passes the active set saved."""
        saved = 1 - self.passes / self.full_passes if self.full_passes else 0.0
        means = {name: float(getattr(self, name)) / self.steps for name in _MEANS}
        return {**means, "passes_saved": saved}


_MEANS = ("loss", "hardness", "spread")


def train(
    training: Training, data: RetrievalData, folder: Path, compute: Compute, reporter: Reporter
) -> dict[str, Any]:
    """Train into ``folder`` and return the manifest; from the last finished epoch if there is one.

    Raises:
        UserError: the batch is larger than the data, the folder cannot be written, ...
        CellError: the loss stopped being finite; the message names the step and a remedy.
    """
    with compute.applied() as device:
        begun = time.time()
        torch.manual_seed(derived_seed(training.seed, "init"))
        model = training.model.build(data.channels, data.size).to(device)
        optimizer = torch.optim.Adam(
            model.parameters(), lr=training.recipe.lr, weight_decay=training.recipe.weight_decay
        )
        run = _Run(training, data, model, optimizer, device, reporter)
        history, seconds = run.resume(folder)
        elapsed = seconds
        total = training.recipe.epochs * run.steps_per_epoch
        name = f"train {training.defense.label} (seed {training.seed})"
        with reporter.task(name, total) as task:
            task.advance(len(history) * run.steps_per_epoch)
            for epoch in range(len(history), training.recipe.epochs):
                history.append(run.epoch(epoch, task))
                elapsed = seconds + time.time() - begun
                if epoch + 1 < training.recipe.epochs:
                    run.save(folder, history, elapsed)
        facts = {
            "training_id": training.id,
            "training": training.facts,
            "dataset": training.dataset,
            "defense": spec.canonical(training.defense),
            "label": training.defense.label,
            "training_cost": training.defense.training_cost,
            "parameters": sum(p.numel() for p in model.parameters()),
            "history": history,
            "seconds": round(elapsed, 3),
            "started": begun,
            "provenance": provenance(device),
        }
        manifest = checkpoint.save(folder, model, facts)
        (folder / STATE).unlink(missing_ok=True)
        return manifest


@dataclass
class _Run:
    """The moving parts of one training run."""

    training: Training
    data: RetrievalData
    model: EmbeddingModel
    optimizer: torch.optim.Optimizer
    device: torch.device
    reporter: Reporter
    state: State = field(default_factory=State)

    def __post_init__(self) -> None:
        labels = self.data.train.labels
        self.anchors = anchors(labels)
        if len(self.anchors) < self.training.recipe.pairs:
            raise UserError(
                f"a batch of {self.training.recipe.pairs} pairs is larger than the train split, "
                f"which has {len(self.anchors)} images with a partner in their class"
            )
        self.images = torch.from_numpy(self.data.train.images)
        self.labels = torch.from_numpy(labels)

    @property
    def steps_per_epoch(self) -> int:
        """Batches; a last one that is smaller counts too."""
        return math.ceil(len(self.anchors) / self.training.recipe.pairs)

    def epoch(self, number: int, task: Task) -> dict[str, float]:
        """One pass: every image that has a partner is the anchor once."""
        seed = derived_seed(self.training.seed, "epoch", number)
        torch.manual_seed(seed)
        draws = np.random.default_rng(seed)
        mining = torch.Generator(self.device).manual_seed(seed)
        totals, warned = Epoch(), False
        self.model.train()
        for batch in pair_batches(self.data.train.labels, self.training.recipe.pairs, draws):
            step = self.step(batch, mining, totals, number)
            note = f"loss {step[0]:.3f}  H {step[1]:.3f}"
            task.advance(1, note)
            if step[2] > MEAN_COSINE_LIMIT and not warned:
                warned = True
                self.reporter.warn(
                    f"{self.training.defense.label}: the embeddings are collapsing (mean cosine "
                    f"{step[2]:.4f} in epoch {number + 1}, step {totals.steps})"
                )
        return totals.summary()

    def step(
        self,
        batch: npt.NDArray[np.int64],
        mining: torch.Generator,
        totals: Epoch,
        epoch: int,
    ) -> tuple[float, float, float]:
        """One weight update; returns loss, mean hardness and mean cosine of the clean batch."""
        index = torch.from_numpy(batch)
        images = pixels(self.images[index].numpy(), self.device)
        labels = self.labels[index].to(self.device)
        self.model.eval()
        with torch.no_grad():
            embeddings = embed(self.model, images)
        self.model.train()
        clean = Clean(images, labels, embeddings, mining)
        totals.steps += 1
        result = self.training.defense.step(self.model, clean, self.state)
        loss = float("nan") if result.loss is None else float(result.loss.detach())
        if result.loss is not None:
            if not math.isfinite(loss):
                raise CellError(
                    f"the loss is {loss} in epoch {epoch + 1}, step {totals.steps}: the training "
                    f"diverged; try a lower learning rate than {self.training.recipe.lr:g}"
                )
            self.optimizer.zero_grad(set_to_none=True)
            result.loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            totals.loss += loss
            totals.hardness += float(result.hardness)
        totals.spread += float(result.spread)
        totals.passes += result.passes
        totals.full_passes += result.full_passes
        return loss, float(result.hardness), float(result.spread)

    def save(self, folder: Path, history: list[dict[str, float]], seconds: float) -> None:
        """The state after an epoch: its SHA-256 in hex, a newline, the archive."""
        previous = self.state.previous_loss
        buffer = io.BytesIO()
        torch.save(
            {
                "training_id": self.training.id,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "previous_loss": None if previous is None else previous.cpu(),
                "history": history,
                "seconds": seconds,
            },
            buffer,
        )
        content = buffer.getvalue()
        digest = hashlib.sha256(content).hexdigest()
        write_atomically(folder / STATE, digest.encode() + b"\n" + content)

    def resume(self, folder: Path) -> tuple[list[dict[str, float]], float]:
        """Load the last finished epoch; ([], 0) where there is none or it is damaged."""
        try:
            digest, _, content = (folder / STATE).read_bytes().partition(b"\n")
        except FileNotFoundError:
            return [], 0.0
        if hashlib.sha256(content).hexdigest().encode() != digest:
            self.reporter.warn(f"{folder / STATE} is damaged; training starts again")
            return [], 0.0
        saved = torch.load(io.BytesIO(content), map_location=self.device, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        previous = saved["previous_loss"]
        self.state.previous_loss = None if previous is None else previous.to(self.device)
        history: list[dict[str, float]] = saved["history"]
        self.reporter.say(f"resuming after epoch {len(history)}")
        return history, float(saved["seconds"])


def anchors(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Positions of the images that have a partner in their class."""
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return np.flatnonzero(sizes[inverse] > 1)


def pair_batches(
    labels: npt.NDArray[np.int64], pairs: int, draws: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    """SPC-2 batches of an epoch: (2 * pairs,) positions, anchor and positive in turn.

    Every image with a partner is the anchor once, in random order; its positive is drawn
    uniformly from the rest of its class. The last batch may be smaller.
    """
    order = draws.permutation(anchors(labels))
    by_class = np.argsort(labels, kind="stable")
    classes, start, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
    place = np.empty(len(labels), dtype=np.int64)
    place[by_class] = np.arange(len(labels))
    group = np.searchsorted(classes, labels[order])
    # a shift of 1..size-1 within the class never lands on the anchor itself
    shift = 1 + (draws.random(len(order)) * (sizes[group] - 1)).astype(np.int64)
    position = (place[order] - start[group] + shift) % sizes[group] + start[group]
    interleaved = np.stack([order, by_class[position]], axis=1)
    return [interleaved[first : first + pairs].reshape(-1) for first in range(0, len(order), pairs)]
