"""Checks of a defense: one step, then a short training on tiny images."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from dmlbench.attacks.engine.objective import Objective
from dmlbench.compute.distributed import World
from dmlbench.compute.embedding import EmbeddingModel, embed_frozen
from dmlbench.compute.randomness import global_seeds
from dmlbench.core.protocol import TrainingThreat
from dmlbench.datasets.base import RetrievalData
from dmlbench.defenses.base import AdversarialDefense, Batch, Defense, State, StepOutput
from dmlbench.metrics.collapse import MEAN_COSINE_LIMIT, mean_cosine
from dmlbench.metrics.relevance import Relevance
from dmlbench.metrics.retrieval import retrieval
from dmlbench.testing import cards
from dmlbench.testing.findings import require
from dmlbench.testing.randomness import no_global_randomness
from dmlbench.testing.tiny import tiny_data, tiny_network
from dmlbench.training.batches import Index, pair_batches

THREAT = TrainingThreat(eps=0.1, eta=2)
ETA = 5  # of the check of the cost: so many passes are no product of two other plausible numbers
MILD = TrainingThreat(eps=8 / 255, eta=2)  # a strong one may collapse a network for the first steps
PAIRS, STEPS = 20, 16  # of the short training
SHOWN = (0, STEPS - 1, STEPS - 1)  # batches of the check of PGD: a defense may begin late, or turn
LEAST_MAP = 75  # percent; sound defenses reach 98 or more, and a loss of the wrong sign 55 or less
RATE = 1e-3
DIRECTIONS, ALIKE = 30, 0.8  # of the slopes of an objective, and how far they must agree
H = 1e-3  # of finite differences in float32, along a direction of length 1 for each group


@dataclass
class Subject:
    """A defense with all that its checks use."""

    component: Defense

    @cached_property
    def defense(self) -> Defense:
        """The defense, resolved."""
        return self.component.resolve(THREAT, "N")

    @cached_property
    def data(self) -> RetrievalData:
        """The images."""
        return tiny_data()

    def one_step(self) -> tuple[Run, Batch, StepOutput]:
        """A fresh run, a batch, and what the defense makes of it."""
        run = Run(self.defense, self.data)
        batch = run.batch(0)
        return run, batch, run.defense.step(run.model, batch, run.state)


class Run:
    """A short training, a step at a time: a defense is given what the trainer gives it."""

    def __init__(self, defense: Defense, data: RetrievalData) -> None:
        self.defense = dataclasses.replace(defense)  # nothing that an earlier run left in it
        self.data, self.done = data, 0
        self.model: EmbeddingModel = tiny_network().train()
        with global_seeds(0):
            self.companion: nn.Module | None = defense.companion(5, 8, "N")
        learned = [*self.model.parameters()]
        learned += self.companion.parameters() if self.companion is not None else []
        self.optimizer = torch.optim.Adam(learned, lr=RATE)
        self.state: State = {}
        draws = np.random.default_rng(0)
        self.batches: list[Index] = []
        while len(self.batches) < STEPS:
            self.batches += pair_batches(data.train.labels, PAIRS, draws)

    def batch(self, number: int) -> Batch:
        """The batch of a step."""
        rows = self.batches[number]
        images = self.data.evaluation_pixels(torch.from_numpy(self.data.train.images[rows]))
        labels = torch.from_numpy(self.data.train.labels[rows])
        embeddings = partial(embed_frozen, self.model, images)
        generator = torch.Generator().manual_seed(number)
        progress = number / len(self.batches)
        return Batch(images, labels, embeddings, generator, World(), self.companion, progress)

    def train(self, steps: int) -> Run:
        """So many more steps."""
        for _ in range(steps):
            step = self.defense.step(self.model, self.batch(self.done), self.state)
            self.done += 1
            if step.loss is not None:
                self.optimizer.zero_grad()
                step.loss.backward()  # type: ignore[no-untyped-call]
                if step.after is not None:
                    step.after(self.state)
                self.optimizer.step()
        return self

    def resumed(self) -> Run:
        """A new run that goes on from what the trainer saves after an epoch."""
        buffer = io.BytesIO()
        own: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer}
        own["companion"] = self.companion
        saved = {k: v.state_dict() for k, v in own.items() if v is not None}
        torch.save(saved | {"defense": self.state}, buffer)
        buffer.seek(0)
        found = torch.load(buffer, weights_only=True)
        run = Run(self.defense, self.data)
        run.model.load_state_dict(found["model"])
        run.optimizer.load_state_dict(found["optimizer"])
        if run.companion is not None:
            run.companion.load_state_dict(found["companion"])
        run.state, run.done = found["defense"], self.done
        return run

    def embeddings(self) -> torch.Tensor:
        """(40, 8) of the test images."""
        images = self.data.evaluation_pixels(torch.from_numpy(self.data.test.images))
        return embed_frozen(self.model, images)


def label(s: Subject) -> None:
    """A name for tables."""
    found = s.defense.label
    require(
        isinstance(found, str) and found.strip() and "\n" not in found,
        f"its label is {found!r}: tables show it, so write the name in the paper's notation",
    )


def step(s: Subject) -> None:
    """One batch becomes one loss; the step itself trains nothing."""
    run, batch, found = s.one_step()
    before = tiny_network()
    require(
        isinstance(found, StepOutput) and found.loss is not None and found.loss.ndim == 0,
        "step() returns no scalar loss for a batch that has triplets: end in triplet_step(...)",
    )
    assert found.loss is not None
    require(
        found.loss.requires_grad and bool(found.loss.isfinite()),
        "the loss has no gradient or is not finite: it must follow from model(images) without "
        "torch.no_grad() or detach()",
    )
    require(
        -2 <= float(found.hardness) <= 2,
        f"the hardness is {float(found.hardness):g}: it is the mean of d(a, p) - d(a, n), within "
        "-2 and 2 for embeddings of unit length",
    )
    require(
        run.model.training,
        "step() leaves the model in eval mode: the next step would train it so; perturb inside "
        "frozen(model), which puts it back",
    )
    pairs = zip(before.parameters(), run.model.parameters(), strict=True)
    require(
        all(torch.equal(a, b) for a, b in pairs),
        "step() changes the weights: return the loss, and the trainer takes the step",
    )
    require(
        all(p.grad is None for p in run.model.parameters()),
        "step() leaves gradients in the parameters, which the trainer would add to: perturb inside "
        "frozen(model), and do not call backward()",
    )
    original = Run(s.defense, s.data).batch(0)
    require(
        torch.equal(batch.images, original.images) and torch.equal(batch.labels, original.labels),
        "step() changes the images or labels of its batch in place: work on a copy",
    )


def cost(s: Subject) -> None:
    """``training_cost`` says how many passes a step takes."""
    run = Run(s.component.resolve(dataclasses.replace(THREAT, eta=ETA), "N"), s.data)
    batch = run.batch(0)
    found = run.defense.step(run.model, batch, run.state)
    cost = run.defense.training_cost
    require(
        isinstance(cost, int) and cost >= 1,
        f"training_cost is {cost!r}: it is eta + 1 forward-backward passes, 1 without any attack",
    )
    require(
        0 <= found.passes <= found.full_passes,
        f"the step reports {found.passes} passes of {found.full_passes}: passes counts what was "
        "spent, full_passes what the same would be without the active set (PGD reports both)",
    )
    inner = cost - 1
    rows, rest = divmod(found.full_passes, inner) if inner else (1, found.full_passes)
    require(
        rest == 0 and (not inner or rows in (len(batch.labels) // 2, len(batch.labels))),
        f"training_cost is {cost}, so that {inner} adversarial passes a triplet are expected, but "
        f"the step reports {found.full_passes} for {len(batch.labels)} images: boards plot "
        "robustness over this cost; return eta + 1, and the passes that PGD reports",
    )


def perturbs(s: Subject) -> None:
    """PGD follows the gradient of the objective, and the loss is that of the perturbed images.

    Only the direction of the gradient counts, as PGD steps by its sign.
    """
    found: list[tuple[Objective, torch.Tensor]] = []
    plain, moved = AdversarialDefense.perturb, [False] * len(SHOWN)

    def recorded(
        self: Any, model: Any, images: Any, objective: Any, *more: Any, **keys: Any
    ) -> Any:
        e = embed_frozen(model, images.flatten(0, 1)).view(*images.shape[:2], -1)
        found.append((objective, e))
        perturbed = plain(self, model, images, objective, *more, **keys)
        moved[len(losses)] |= not torch.equal(perturbed.images, images)
        return perturbed

    def clean(self: Any, model: Any, images: Any, *more: Any, **keys: Any) -> Any:
        return dataclasses.replace(plain(self, model, images, *more, **keys), images=images)

    both: list[list[torch.Tensor | None]] = []
    for way in (recorded, clean):
        run, losses = Run(s.defense, s.data), []
        with patch.object(AdversarialDefense, "perturb", way):
            for number in SHOWN:
                losses.append(run.defense.step(run.model, run.batch(number), run.state).loss)
        both.append(losses)
    steps = (s.defense.eta or 1) if isinstance(s.defense, AdversarialDefense) else 1
    for objective, e in found:
        expected, said = _slopes(objective, e, min(1, steps - 1))
        size = expected.norm() * said.norm()
        agree = float(expected @ said / size) if size else float(not (expected.any() or said.any()))
        require(
            agree > ALIKE,
            "the gradient that value_and_grad gives PGD is not that of its loss (their changes "
            f"along {DIRECTIONS} directions have a cosine of {agree:.2f}): PGD would descend "
            "another loss than this one; derive it again, or let torch.autograd.grad take it from "
            "the loss of e",
        )
    require(
        all(not changed or a != b for changed, a, b in zip(moved, *both, strict=True)),
        "the loss is the same whether PGD perturbs the images or not: embed perturbed.images, not "
        "the images of the batch",
    )


def _slopes(objective: Objective, e: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Changes of the loss along directions: by finite differences, and as the gradient says.

    ``step`` of PGD: the first one of ES has another loss.
    """
    generator = torch.Generator().manual_seed(0)
    e = nn.functional.normalize(e + 0.1 * torch.randn(e.shape, generator=generator), dim=2)
    slope = objective.value_and_grad(e, step)[1]
    expected, said = [], []
    for _ in range(DIRECTIONS):
        direction = torch.randn(e.shape, generator=generator)
        direction /= torch.linalg.vector_norm(direction, dim=(1, 2), keepdim=True)
        ends = (objective.value_and_grad(e + h * direction, step)[0] for h in (H, -H))
        ahead, behind = (end.double().sum() for end in ends)
        expected.append((ahead - behind) / (2 * H))
        said.append((slope * direction).double().sum())
    return torch.stack(expected), torch.stack(said)


def randomness(s: Subject) -> None:
    """No global random generator is read or advanced."""
    run = Run(s.defense, s.data)
    batch = run.batch(0)
    with global_seeds(1), no_global_randomness("step()", type(s.defense).__mro__):
        run.defense.step(run.model, batch, run.state)
    found = []
    for seed in (1, 2):
        with global_seeds(seed):
            found.append(Run(s.defense, s.data).train(3).embeddings())
    require(
        torch.equal(*found),
        "two trainings with the same seed end with different weights: it reads the seed of a "
        "global generator, the time, or something that an earlier run left behind. The model could "
        "not be trained again: draw from batch.generator",
    )


def resumes(s: Subject) -> None:
    """Check that all it keeps from step to step is in ``state``, which each epoch saves."""
    run = Run(s.defense, s.data).train(2)
    bad = [k for k, v in run.state.items() if not isinstance(v, torch.Tensor) or v.requires_grad]
    require(
        not bad,
        f"state[{', '.join(map(repr, bad))}] is no tensor, or has a gradient: the trainer saves "
        "tensors; write state['name'] = value.detach()",
    )
    resumed, whole = run.resumed().train(2), run.train(2)
    require(
        torch.equal(resumed.embeddings(), whole.embeddings()),
        "a training that was interrupted ends with other weights than one that was not: keep what "
        "must survive from step to step in `state`, not in the defense or its module",
    )


def learns(s: Subject) -> None:
    """A short training leaves embeddings that are finite, not collapsed, and retrieve."""
    run = Run(s.component.resolve(MILD, "N"), s.data).train(STEPS)
    e, labels = run.embeddings(), torch.from_numpy(s.data.test.labels)
    require(
        e.isfinite().all(),
        f"after {STEPS} steps the embeddings are not finite: guard divisions, square roots at zero "
        "and logarithms",
    )
    advice = "Look at the sign of the loss, and at how hard its triplets are"
    cosine = mean_cosine(e)
    require(
        cosine <= MEAN_COSINE_LIMIT,
        f"after {STEPS} steps the embeddings have collapsed (mean cosine {cosine:.4f}): all images "
        f"have one embedding, which cannot retrieve. {advice}",
    )
    found = (
        retrieval(e, torch.arange(len(e)), e, Relevance.leave_one_out(labels), "N")
        .scores["mAP"]
        .mean()
        .item()
    )
    require(
        found >= LEAST_MAP,
        f"after {STEPS} steps the network cannot tell five made classes apart (mAP {found:.0f}%, "
        f"where other defenses reach 98%): it does not learn to retrieve. {advice}",
    )


CHECKS: dict[str, Callable[[Subject], None]] = {
    "card": lambda s: cards.card(s.component),
    "parameters": lambda s: cards.parameters(s.component),
    "label": label,
    "step": step,
    "cost": cost,
    "perturbs": perturbs,
    "randomness": randomness,
    "resumes": resumes,
    "learns": learns,
}
NEEDS = dict.fromkeys(("cost", "perturbs", "randomness", "resumes", "learns"), "step")
NEEDS["resumes"] = "randomness"
