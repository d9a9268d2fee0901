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
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dmlbench import checkpoint, spec
from dmlbench.compute import Compute
from dmlbench.datasets.base import RetrievalData
from dmlbench.defenses.base import Clean, Defense, State
from dmlbench.embedding import EmbeddingModel, embed, place
from dmlbench.errors import CellError, UserError
from dmlbench.files import write_atomically
from dmlbench.identity import derived_seed, identity
from dmlbench.metrics.collapse import MEAN_COSINE_LIMIT
from dmlbench.models.base import Model, canonical_model
from dmlbench.progress import Reporter, Task
from dmlbench.provenance import provenance
from dmlbench.recipe import Recipe

History = list[dict[str, float | None]]

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
        spelling: the defense as a user would write it (for people; the fields decide).
    """

    dataset: str
    digest: str
    model: Model
    defense: Defense
    recipe: Recipe
    seed: int
    spelling: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """JSON-able identity facts."""
        return {
            "kind": "training",
            "training_version": TRAINING_VERSION,
            "data": self.digest,
            "model": self.model.facts | self.model.training_facts,
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
    """What the steps of an epoch were like; a batch without a triplet has no loss."""

    losses: list[float] = field(default_factory=list)
    hardnesses: list[float] = field(default_factory=list)
    spreads: list[float] = field(default_factory=list)
    passes: int = 0
    full_passes: int = 0

    def summary(self) -> dict[str, float | None]:
        """Means over the steps, and the share of adversarial passes the active set saved."""
        saved = 1 - self.passes / self.full_passes if self.full_passes else 0.0
        return {
            "loss": fmean(self.losses) if self.losses else None,
            "hardness": fmean(self.hardnesses) if self.hardnesses else None,
            "spread": fmean(self.spreads),
            "passes_saved": saved,
        }


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
        model = place(training.model.build(data.channels, data.size, initial=True), device)
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
            "model": canonical_model(training.model),
            "defense": training.spelling,
            "resolved": spec.canonical(training.defense),
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
    state: State = field(default_factory=dict)

    def __post_init__(self) -> None:
        labels = self.data.train.labels
        self.anchors = anchors(labels)
        if len(self.anchors) < self.training.recipe.pairs:
            raise UserError(
                f"a batch of {self.training.recipe.pairs} pairs is larger than the train split, "
                f"which has {len(self.anchors)} images with a partner in their class"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Batches; a last one that is smaller counts too."""
        return math.ceil(len(self.anchors) / self.training.recipe.pairs)

    def epoch(self, number: int, task: Task) -> dict[str, float | None]:
        """One pass: every image that has a partner is the anchor once."""
        seed = derived_seed(self.training.seed, "epoch", number)
        torch.manual_seed(seed)
        draws = np.random.default_rng(seed)
        mining = torch.Generator(self.device).manual_seed(seed)
        seen, warned = Epoch(), False
        self.model.train()
        for batch in pair_batches(self.data.train.labels, self.training.recipe.pairs, draws):
            place = f"epoch {number + 1}, step {len(seen.spreads) + 1}"
            self.step(batch, mining, seen, place)
            if seen.losses:
                task.advance(1, f"loss {seen.losses[-1]:.3f}  H {seen.hardnesses[-1]:.3f}")
            if seen.spreads[-1] > MEAN_COSINE_LIMIT and not warned:
                warned = True
                self.reporter.warn(
                    f"{self.training.defense.label}: the embeddings are collapsing (mean cosine "
                    f"{seen.spreads[-1]:.4f} in {place})"
                )
        return seen.summary()

    def step(
        self, batch: npt.NDArray[np.int64], mining: torch.Generator, seen: Epoch, place: str
    ) -> None:
        """One weight update.

        Raises:
            CellError: the loss or a gradient is not finite; the message names the place.
        """
        train = self.data.train
        images = self.data.training_pixels(train.batch(batch, self.device), mining)
        labels = torch.from_numpy(train.labels[batch]).to(self.device)
        self.model.eval()
        with torch.no_grad():
            embeddings = embed(self.model, images)
        self.model.train()
        try:
            result = self.training.defense.step(
                self.model, Clean(images, labels, embeddings, mining), self.state
            )
        except CellError as error:
            raise self._diverged(place, str(error)) from None
        seen.spreads.append(float(result.spread))
        seen.passes += result.passes
        seen.full_passes += result.full_passes
        if result.loss is None:
            return
        loss = float(result.loss.detach())
        if not math.isfinite(loss):
            raise self._diverged(place, f"the loss is {loss}")
        self.optimizer.zero_grad(set_to_none=True)
        result.loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        seen.losses.append(loss)
        seen.hardnesses.append(float(result.hardness))

    def _diverged(self, place: str, what: str) -> CellError:
        rate = self.training.recipe.lr
        return CellError(
            f"{what} in {place}: the training diverged; try a lower learning rate than {rate:g}"
        )

    def save(self, folder: Path, history: History, seconds: float) -> None:
        """The state after an epoch: its SHA-256 in hex, a newline, the archive."""
        buffer = io.BytesIO()
        torch.save(
            {
                "training_id": self.training.id,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "defense": {name: value.cpu() for name, value in self.state.items()},
                "history": history,
                "seconds": seconds,
            },
            buffer,
        )
        content = buffer.getvalue()
        digest = hashlib.sha256(content).hexdigest()
        write_atomically(folder / STATE, digest.encode() + b"\n" + content)

    def resume(self, folder: Path) -> tuple[History, float]:
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
        self.state = {name: value.to(self.device) for name, value in saved["defense"].items()}
        history: History = saved["history"]
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
