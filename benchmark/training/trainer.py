"""Train a model with a defense: seeded, resumable an epoch at a time, stopped when it diverges.

Every random number of an epoch comes from (seed, epoch), so a run that was interrupted and one
that was not end with the same weights. Under ``torchrun`` the batch is shared out among the
processes (``dmlbench.compute.distributed``).
"""

from __future__ import annotations

import hashlib
import io
import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn

from dmlbench.common.errors import CellError, UserError
from dmlbench.common.files import write_atomically
from dmlbench.common.hashing import derived_seed
from dmlbench.common.progress import Bar, Reporter
from dmlbench.compute.device import Compute
from dmlbench.compute.distributed import World, world
from dmlbench.compute.embedding import embed, frozen, place
from dmlbench.compute.provenance import provenance
from dmlbench.core import spec
from dmlbench.datasets.base import RetrievalData
from dmlbench.defenses.base import Clean, State
from dmlbench.metrics.collapse import MEAN_COSINE_LIMIT
from dmlbench.metrics.retrieval import retrieval
from dmlbench.models.base import canonical_model
from dmlbench.storage import checkpoint
from dmlbench.training.batches import Index, Pixels, anchors, pair_batches
from dmlbench.training.job import Training
from dmlbench.training.log import TrainingLog

History = list[dict[str, float | None]]

STATE = "state.pt"
COMPANION_RATE = 100  # proxies learn so much faster than the network (Kim et al., CVPR 2020)


@dataclass
class Epoch:
    """What the steps of an epoch were like; a batch without a triplet has no loss."""

    losses: list[float] = field(default_factory=list)
    hardnesses: list[float] = field(default_factory=list)
    spreads: list[float] = field(default_factory=list)
    passes: float = 0
    full_passes: float = 0

    @property
    def steps(self) -> int:
        """How many there were."""
        return len(self.spreads)

    def last(self) -> dict[str, float | None]:
        """The last loss and hardness that there were, and the last spread."""
        return {
            "loss": self.losses[-1] if self.losses else None,
            "hardness": self.hardnesses[-1] if self.hardnesses else None,
            "spread": self.spreads[-1],
        }

    def summary(self) -> dict[str, float | None]:
        """Means over the steps, and the share of adversarial passes the active set saved."""
        saved = 1 - self.passes / self.full_passes if self.full_passes else 0.0
        return {
            "loss": fmean(self.losses) if self.losses else None,
            "hardness": fmean(self.hardnesses) if self.hardnesses else None,
            "spread": fmean(self.spreads),
            "passes_saved": saved,
        }


@dataclass(frozen=True)
class Watch:
    """How a run is followed; changes no weight.

    Attributes:
        validate: measure R@1 on the test split every so many epochs, and after the last; 0: never.
        tensorboard: write event files beside the JSON lines.
    """

    validate: int = 0
    tensorboard: bool = False


def train(
    training: Training,
    data: RetrievalData,
    folder: Path,
    compute: Compute,
    reporter: Reporter,
    watch: Watch = Watch(),
) -> dict[str, Any]:
    """Train into ``folder`` and return the manifest; from the last finished epoch if there is one.

    Raises:
        UserError: the batch is larger than the data, the folder cannot be written, ...
        CellError: the loss stopped being finite; the message names the step and a remedy.
    """
    compute = replace(compute, precision=training.recipe.precision)
    compute.check()
    with compute.applied() as device:
        begun, clock, among = time.time(), time.monotonic(), world(device)
        known = checkpoint.read_manifest(folder, training.facts) if among.leads else None
        known = among.from_first(known)
        if known is not None:
            return known
        run = _Run(training, data, device, reporter, among, watch)
        history, before = run.resume(folder)
        if not among.agree(len(history)):
            raise UserError(f"the processes do not see the same files in {folder}")
        steps = run.steps_per_epoch
        total = training.recipe.epochs * steps
        name = f"train {training.defense.label} (seed {training.seed})"
        log = TrainingLog(folder if among.leads else None, len(history), steps, watch.tensorboard)
        with closing(log), reporter.task(name, total) as task:
            task.advance(len(history) * steps)
            for epoch in range(len(history), training.recipe.epochs):
                history.append(run.epoch(epoch, task, log))
                if epoch + 1 < training.recipe.epochs and among.leads:
                    run.save(folder, history, before + time.monotonic() - clock)
        facts = {
            "training_id": training.id,
            "training": training.facts,
            "dataset": training.dataset,
            "model": canonical_model(training.model),
            "defense": training.spelling,
            "resolved": spec.shown(training.defense),
            "label": training.defense.label,
            "training_cost": training.defense.training_cost,
            "parameters": sum(p.numel() for p in run.model.parameters()),
            "processes": among.size,
            "history": history,
            "seconds": round(before + time.monotonic() - clock, 3),
            "started": begun,
            "provenance": provenance(device),
        }
        manifest = None
        if among.leads:
            # another run may have finished it meanwhile: then its weights stand
            manifest = checkpoint.read_manifest(folder, training.facts)
            manifest = manifest or checkpoint.save(folder, run.model, facts)
            (folder / STATE).unlink(missing_ok=True)
        manifest = among.from_first(manifest)
        assert manifest is not None
        return manifest


@dataclass
class _Run:
    """The moving parts of one training run."""

    training: Training
    data: RetrievalData
    device: torch.device
    reporter: Reporter
    world: World
    watch: Watch
    state: State = field(default_factory=dict)
    recall: float | None = None

    def __post_init__(self) -> None:
        recipe, train = self.training.recipe, self.data.train
        self.anchors = anchors(train.labels)
        if len(self.anchors) < recipe.pairs:
            raise UserError(
                f"a batch of {recipe.pairs} pairs is larger than the train split, "
                f"which has {len(self.anchors)} images with a partner in their class"
            )
        torch.manual_seed(derived_seed(self.training.seed, "init"))
        network = self.training.model.build(self.data.channels, self.data.size, initial=True)
        network.reduced = recipe.precision == "bf16"
        self.model = self.world.synchronised(place(network, self.device))
        classes, labels = np.unique(train.labels, return_inverse=True)
        self.labels = torch.from_numpy(labels)
        self.pixels = Pixels(train.images, self.device)
        self.companion = self.training.defense.companion(
            len(classes), self._dim(), self.model.metric
        )
        groups: list[dict[str, Any]] = [{"params": _learned(self.model), "lr": recipe.lr}]
        if self.companion is not None:
            self.companion.to(self.device)
            own = _learned(self.companion)
            groups += [{"params": own, "lr": recipe.lr * COMPANION_RATE}] if own else []
        self.world.begin_alike([m for m in (self.model, self.companion) if m is not None])
        self.parameters = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.Adam(groups, weight_decay=recipe.weight_decay)

    @property
    def steps_per_epoch(self) -> int:
        """Batches; a last one that is smaller counts too."""
        return math.ceil(len(self.anchors) / self.training.recipe.pairs)

    def epoch(self, number: int, task: Bar, log: TrainingLog) -> dict[str, float | None]:
        """One pass: every image that has a partner is the anchor once."""
        seed = derived_seed(self.training.seed, "epoch", number)
        torch.manual_seed(seed)
        draws = np.random.default_rng(seed)
        mining = torch.Generator(self.device).manual_seed(seed)
        seen, count, warned, begun = Epoch(), 0, False, time.perf_counter()
        batches = pair_batches(self.data.train.labels, self.training.recipe.pairs, draws)
        self.model.train()
        for index, raw in zip(batches, self.pixels.batches(batches), strict=True):
            where = f"epoch {number + 1}, step {seen.steps + 1}"
            self.step(self.data.training_pixels(raw, mining), index, mining, seen, where)
            count += len(index)
            rate = count / (time.perf_counter() - begun)
            found = {**seen.last(), "images_per_second": round(rate, 1)}
            log.step(number * len(batches) + seen.steps, number + 1, seen.steps, found)
            task.advance(1, _note(found | {"R@1": self.recall}))
            if seen.spreads[-1] > MEAN_COSINE_LIMIT and not warned:
                warned = True
                self.reporter.warn(
                    f"{self.training.defense.label}: the embeddings are collapsing (mean cosine "
                    f"{seen.spreads[-1]:.4f} in {where})"
                )
        seen.passes, seen.full_passes = self.world.sum(
            torch.tensor([seen.passes, seen.full_passes], device=self.device)
        ).tolist()
        self.check(batches[-1], where)
        summary = seen.summary()
        last = number + 1 == self.training.recipe.epochs
        if self.watch.validate and (last or (number + 1) % self.watch.validate == 0):
            self.recall = summary["R@1"] = self.validate()
            self.reporter.say(f"epoch {number + 1}: {_note(summary)}")
        log.epoch((number + 1) * len(batches), number + 1, summary)
        return summary

    def step(
        self,
        images: torch.Tensor,
        index: Index,
        mining: torch.Generator,
        seen: Epoch,
        where: str,
    ) -> None:
        """One weight update.

        Raises:
            CellError: the loss or a gradient is not finite; the message names the step.
        """
        labels = self.labels[torch.from_numpy(index)].to(self.device)
        embeddings = partial(self.embeddings, images)
        clean = Clean(images, labels, embeddings, mining, self.world, self.companion)
        try:
            result = self.training.defense.step(self.model, clean, self.state)
        except CellError as error:
            raise self._diverged(where, str(error)) from None
        self.state = {k: self.world.mean(v, result.weight) for k, v in self.state.items()}
        seen.spreads.append(float(result.spread))
        seen.passes += result.passes
        seen.full_passes += result.full_passes
        if result.loss is None:
            return
        loss = float(self.world.mean(result.loss.detach(), result.weight))
        if not math.isfinite(loss):
            raise self._diverged(where, f"the loss is {loss}")
        self.optimizer.zero_grad(set_to_none=True)
        (result.loss * result.weight).backward()  # type: ignore[no-untyped-call]
        self.world.sum_gradients(self.parameters)
        self.optimizer.step()
        seen.losses.append(loss)
        seen.hardnesses.append(float(self.world.mean(result.hardness, result.weight)))

    @torch.no_grad()
    def embeddings(self, images: torch.Tensor) -> torch.Tensor:
        """(2B, D) of a batch in eval mode, each process its share."""
        own = self.world.share(len(images))
        with frozen(self.model):
            return self.world.gather(embed(self.model, images[own]), len(images))

    @torch.no_grad()
    def check(self, index: Index, where: str) -> None:
        """CellError if the step that was the last has left a network that gives no embeddings."""
        (raw,) = self.pixels.batches([index])
        self.model.eval()
        e = embed(self.model, self.data.evaluation_pixels(raw))
        self.model.train()
        if not bool(e.isfinite().all()):
            raise self._diverged(where, "the embeddings are not finite")

    @torch.no_grad()
    def validate(self) -> float | None:
        """R@1 on the clean test split, in percent; None where no query has a match."""
        test, parts = self.data.test, []
        rows = [np.arange(i, min(i + 256, len(test))) for i in range(0, len(test), 256)]
        self.model.eval()
        for raw in Pixels(test.images, self.device).batches(rows):
            parts.append(embed(self.model, self.data.evaluation_pixels(raw)))
        self.model.train()
        e = torch.cat(parts)
        labels = torch.from_numpy(test.labels).to(self.device)
        index = torch.arange(len(test), device=self.device)
        found = retrieval(e, index, e, labels, self.model.metric, recalls=(1,))
        return float(found.scores["R@1"].nanmean()) if bool(found.valid.any()) else None

    def _dim(self) -> int:
        """D of the embeddings."""
        probe = torch.zeros(2, self.data.channels, self.data.size, self.data.size)
        self.model.eval()
        with torch.no_grad():
            return int(self.model(probe.to(self.device)).shape[1])

    def _diverged(self, where: str, what: str) -> CellError:
        rate = self.training.recipe.lr
        return CellError(
            f"{what} in {where}: the training diverged; try a lower learning rate than {rate:g}"
        )

    def save(self, folder: Path, history: History, seconds: float) -> None:
        """The state after an epoch: its SHA-256 in hex, a newline, the archive."""
        buffer = io.BytesIO()
        torch.save(
            {
                "training_id": self.training.id,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "companion": None if self.companion is None else self.companion.state_dict(),
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
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if saved["training_id"] != self.training.id:
            self.reporter.warn(f"{folder / STATE} is of another training; it starts again")
            return [], 0.0
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.companion is not None:
            self.companion.load_state_dict(saved["companion"])
        self.state = {name: value.to(self.device) for name, value in saved["defense"].items()}
        history: History = saved["history"]
        self.reporter.say(f"resuming after epoch {len(history)}")
        return history, float(saved["seconds"])


def _learned(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen."""
    return [p for p in module.parameters() if p.requires_grad]


def _note(found: Mapping[str, float | None]) -> str:
    """How it goes, on a line of progress."""
    forms = {
        "loss": "loss {:.3f}",
        "hardness": "H {:.3f}",
        "R@1": "R@1 {:.1f}",
        "passes_saved": "{:.0%} of the inner passes saved",
        "images_per_second": "{:.0f} images/s",
    }
    return "  ".join(
        form.format(value) for key, form in forms.items() if (value := found.get(key)) is not None
    )
