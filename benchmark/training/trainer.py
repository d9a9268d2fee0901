"""Train a model with a defense.

The training is seeded, can be resumed after every epoch, and stops if it diverges. All random
numbers of an epoch derive from (seed, epoch). An interrupted and resumed training therefore gives
the same weights as one without interruption. Under ``torchrun`` the processes divide each batch
(``dmlbench.compute.distributed``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dmlbench.common.errors import CellError, UserError
from dmlbench.common.hashing import derived_seed
from dmlbench.common.numbers import check_whole
from dmlbench.common.progress import Bar, Reporter
from dmlbench.compute.device import Compute
from dmlbench.compute.distributed import World, connect
from dmlbench.compute.embedding import embed_together, frozen, on_device
from dmlbench.compute.provenance import provenance
from dmlbench.compute.randomness import global_seeds, seed_all
from dmlbench.core import spec
from dmlbench.datasets.base import RetrievalData, Split
from dmlbench.defenses.base import Batch, State
from dmlbench.metrics.collapse import MEAN_COSINE_LIMIT
from dmlbench.metrics.retrieval import retrieval
from dmlbench.models.base import canonical_model
from dmlbench.storage import checkpoint
from dmlbench.training import state
from dmlbench.training.batches import ImageBatches, Index, pair_batches
from dmlbench.training.epoch import EpochStatistics, progress_note
from dmlbench.training.job import Training, anchors, check_pairs
from dmlbench.training.log import TrainingLog

History = list[dict[str, float | None]]

COMPANION_RATE = 100  # factor on the learning rate of proxies (Kim et al., CVPR 2020)


@dataclass(frozen=True)
class Monitoring:
    """Settings that show the progress of a training and do not change its weights.

    Attributes:
        validate: number of epochs between two measurements of R@1 on the test split, which is also
            measured after the last epoch; 0: never.
        tensorboard: write event files of TensorBoard in addition to the JSON lines.
    """

    validate: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check_whole("validate", self.validate, 0)


def train(
    training: Training,
    data: RetrievalData,
    folder: Path,
    compute: Compute,
    reporter: Reporter,
    monitoring: Monitoring = Monitoring(),
) -> checkpoint.Manifest:
    """Train a model, save it in ``folder`` and return its manifest.

    A training that was interrupted continues after its last finished epoch. If the folder already
    holds the finished model, its manifest is returned at once.

    Raises:
        UserError: the batch is larger than the data, the folder cannot be written, ...
        CellError: the training diverged; the message names the step and a remedy.
    """
    compute = replace(compute, precision=training.recipe.precision)
    compute.check()
    with compute.applied() as device, global_seeds(derived_seed(training.seed, "init"), device):
        started, start, world = time.time(), time.monotonic(), connect(device)
        known = checkpoint.verified_manifest(folder, training.facts) if world.is_main else None
        known = world.broadcast(known)
        if known is not None:
            return known
        run = _TrainingRun(training, data, device, reporter, world, monitoring)
        history, before = run.resume(folder)
        if not world.all_equal(len(history)):
            raise UserError(f"the processes do not see the same files in {folder}")
        steps = run.steps_per_epoch
        total = training.recipe.epochs * steps
        name = f"train {training.shown} (seed {training.seed})"
        log = TrainingLog(
            folder if world.is_main else None, len(history), steps, monitoring.tensorboard
        )
        with closing(log), reporter.task(name, total, len(history) * steps) as task:
            for epoch in range(len(history), training.recipe.epochs):
                history.append(run.epoch(epoch, task, log))
                if epoch + 1 < training.recipe.epochs and world.is_main:
                    run.save(folder, history, before + time.monotonic() - start)
        facts = {
            "training_id": training.id,
            "training": training.facts,
            "dataset": training.dataset,
            "model": canonical_model(training.model),
            "image_shape": (data.channels, data.size),
            "defense": training.spelling,
            "resolved": spec.shown(training.defense),
            "label": training.defense.label,
            "training_cost": training.defense.training_cost,
            "parameters": sum(p.numel() for p in run.model.parameters()),
            "processes": world.size,
            "history": history,
            "seconds": round(before + time.monotonic() - start, 3),
            "started": started,
            "provenance": provenance(device),
        }
        manifest = None
        if world.is_main:
            # another run may have finished the same model meanwhile: its weights are kept
            manifest = checkpoint.verified_manifest(folder, training.facts)
            manifest = manifest or checkpoint.save(folder, run.model, facts)
            (folder / checkpoint.STATE).unlink(missing_ok=True)
        manifest = world.broadcast(manifest)
        assert manifest is not None
        return manifest


@dataclass
class _TrainingRun:
    """The state of a training run: model, optimizer, data.

    Attributes:
        state: tensors that the defense keeps from step to step, e.g. a moving average.
        recall: the last measured R@1 in percent; None before the first measurement.
    """

    training: Training
    data: RetrievalData
    device: torch.device
    reporter: Reporter
    world: World
    monitoring: Monitoring
    state: State = field(default_factory=dict)
    recall: float | None = None

    def __post_init__(self) -> None:
        recipe, train = self.training.recipe, self.data.train
        self.anchors = anchors(train.labels)
        check_pairs(recipe.pairs, train.labels)
        self.training.defense.check_epochs(recipe.epochs)
        seed_all(derived_seed(self.training.seed, "init"))
        network = self.training.model.build(self.data.channels, self.data.size, initial=True)
        if not _trainable(network):
            name = canonical_model(self.training.model)
            raise UserError(f"model {name} has no parameters to train: measure it with 'attack'")
        network.use_bfloat16 = recipe.precision == "bf16"
        self.training.defense.check_network(network.backbone)
        self.model = self.world.synchronise_batch_norm(on_device(network, self.device))
        classes, labels = np.unique(train.labels, return_inverse=True)
        self.labels = torch.from_numpy(labels)
        self.pixels = ImageBatches(train.images, self.device)
        self.companion = self.training.defense.companion(
            len(classes), self._dim(), self.model.metric
        )
        groups: list[dict[str, Any]] = [{"params": _trainable(self.model), "lr": recipe.lr}]
        if self.companion is not None:
            self.companion.to(self.device)
            own = _trainable(self.companion)
            groups += [{"params": own, "lr": recipe.lr * COMPANION_RATE}] if own else []
        self.world.broadcast_weights([m for m in (self.model, self.companion) if m is not None])
        self.parameters = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.Adam(groups, weight_decay=recipe.weight_decay)

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps in an epoch, including those on a smaller last batch."""
        replays = self.training.defense.replays
        batches = math.ceil(len(self.anchors) / self.training.recipe.pairs)
        return math.ceil(batches / replays) * replays

    def epoch(self, number: int, task: Bar, log: TrainingLog) -> dict[str, float | None]:
        """Train for one epoch and return its summary.

        Each image with a partner in its class is the anchor once; if batches are replayed, only one
        in ``replays`` of these images is.
        """
        seed = derived_seed(self.training.seed, "epoch", number)
        # each process draws dropout of its own share; a single process, and the first, by `seed`
        rank = self.world.rank
        seed_all(derived_seed(seed, "process", rank) if rank else seed)
        generator = np.random.default_rng(seed)
        mining = torch.Generator(self.device).manual_seed(seed)
        before = number * self.steps_per_epoch
        statistics, count, warned, start = EpochStatistics(), 0, False, time.perf_counter()
        batches = pair_batches(self.data.train.labels, self.training.recipe.pairs, generator)
        batches = batches[:: self.training.defense.replays]
        self.model.train()
        for index, images in self.shown(batches, mining):
            where = f"epoch {number + 1}, step {statistics.steps + 1}"
            self.step(images, index, mining, statistics, where, number)
            count += len(index)
            rate = count / (time.perf_counter() - start)
            found = {**statistics.last(), "images_per_second": round(rate, 1)}
            log.step(before + statistics.steps, number + 1, statistics.steps, found)
            task.advance(1, progress_note(found | {"R@1": self.recall}))
            if statistics.mean_cosines[-1] > MEAN_COSINE_LIMIT and not warned:
                warned = True
                self.reporter.warn(
                    f"{self.training.shown}: the embeddings are collapsing (mean cosine "
                    f"{statistics.mean_cosines[-1]:.4f} in {where})"
                )
        statistics.passes, statistics.full_passes = self.world.sum(
            torch.tensor([statistics.passes, statistics.full_passes], device=self.device)
        ).tolist()
        self.check(batches[-1], where)
        summary = statistics.summary()
        last = number + 1 == self.training.recipe.epochs
        if self.monitoring.validate and (last or (number + 1) % self.monitoring.validate == 0):
            self.recall = summary["R@1"] = self.validate()
            self.reporter.say(f"epoch {number + 1}: {progress_note(summary)}")
        log.epoch(before + self.steps_per_epoch, number + 1, summary)
        return summary

    def shown(
        self, batches: list[Index], crops: torch.Generator
    ) -> Iterator[tuple[Index, torch.Tensor]]:
        """Yield positions and images of each step: each batch as often as it is replayed."""
        for index, raw in zip(batches, self.pixels.batches(batches), strict=True):
            images = self.data.training_pixels(raw, crops)
            for _ in range(self.training.defense.replays):
                yield index, images

    def step(
        self,
        images: torch.Tensor,
        index: Index,
        mining: torch.Generator,
        statistics: EpochStatistics,
        where: str,
        epoch: int = 0,
    ) -> None:
        """Update the weights once, in epoch 0, 1, ...

        Raises:
            CellError: the loss or a gradient is not finite; the message names the step.
        """
        labels = self.labels[torch.from_numpy(index)].to(self.device)
        embeddings = partial(self.embeddings, images)
        progress = epoch / self.training.recipe.epochs
        batch = Batch(images, labels, embeddings, mining, self.world, self.companion, progress)
        try:
            result = self.training.defense.step(self.model, batch, self.state)
        except CellError as error:
            raise self._diverged(where, str(error)) from None
        self.state = {k: self.world.mean(v, result.weight) for k, v in self.state.items()}
        statistics.mean_cosines.append(float(result.mean_cosine))
        statistics.passes += result.passes
        statistics.full_passes += result.full_passes
        if result.loss is None:
            return
        loss = float(self.world.mean(result.loss.detach(), result.weight))
        if not math.isfinite(loss):
            raise self._diverged(where, f"the loss is {loss}")
        self.optimizer.zero_grad(set_to_none=True)
        (result.loss * result.weight).backward()  # type: ignore[no-untyped-call]
        if result.after is not None:
            result.after(self.state)
        self.world.sum_gradients(self.parameters)
        self.optimizer.step()
        statistics.losses.append(loss)
        statistics.hardnesses.append(float(self.world.mean(result.hardness, result.weight)))

    @torch.no_grad()
    def embeddings(self, images: torch.Tensor) -> torch.Tensor:
        """Embed a batch of 2B images in eval mode, divided among the processes: (2B, D)."""
        own = self.world.share(len(images))
        with frozen(self.model):
            return self.world.gather(embed_together(self.model, images[own]), len(images))

    @torch.no_grad()
    def check(self, index: Index, where: str) -> None:
        """Raise CellError if the last step has left a network without finite embeddings."""
        (raw,) = self.pixels.batches([index])
        self.model.eval()
        e = embed_together(self.model, self.data.evaluation_pixels(raw))
        self.model.train()
        if not bool(e.isfinite().all()):
            raise self._diverged(where, "the embeddings are not finite")

    @torch.no_grad()
    def validate(self) -> float | None:
        """Measure R@1 of the clean queries in percent; None if none has an answer."""
        self.model.eval()
        items = self._embedded(self.data.searched)
        queries = items if self.data.gallery is None else self._embedded(self.data.test)
        self.model.train()
        index = torch.arange(len(queries), device=self.device)
        relevance = self.data.relevance(self.device)
        found = retrieval(queries, index, items, relevance, self.model.metric, recalls=(1,))
        return float(found.scores["R@1"].nanmean()) if bool(found.valid.any()) else None

    def _embedded(self, split: Split) -> torch.Tensor:
        """(N, D) embeddings of the images of a split."""
        rows = [np.arange(i, min(i + 256, len(split))) for i in range(0, len(split), 256)]
        batches = ImageBatches(split.images, self.device).batches(rows)
        pixels = (self.data.evaluation_pixels(raw) for raw in batches)
        return torch.cat([embed_together(self.model, images) for images in pixels])

    def _dim(self) -> int:
        """Return the embedding dimension D."""
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
        """Store what the training goes on with if it is interrupted after this epoch."""
        content = {
            "training_id": self.training.id,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "companion": None if self.companion is None else self.companion.state_dict(),
            "defense": {name: value.cpu() for name, value in self.state.items()},
            "history": history,
            "seconds": seconds,
        }
        state.write(folder, content)

    def resume(self, folder: Path) -> tuple[History, float]:
        """Go on after the last finished epoch.

        Returns:
            The summaries of the finished epochs, and the seconds that they took; ([], 0.0) if there
            is no state of this training.

        Raises:
            UserError: the state cannot be read, or is not one of this training's code.
        """
        saved = state.read(folder, self.training.id, self.reporter.warn, self.world.is_main)
        if saved is None:
            return [], 0.0
        try:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            if self.companion is not None:
                self.companion.load_state_dict(saved["companion"])
            self.state = {name: value.to(self.device) for name, value in saved["defense"].items()}
            history: History = list(saved["history"])
            seconds = float(saved["seconds"])
        except Exception as error:  # whatever a state of other code raises
            raise state.misfit(folder, error) from None
        self.reporter.say(f"resuming after epoch {len(history)}")
        return history, seconds


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are not frozen."""
    return [p for p in module.parameters() if p.requires_grad]
