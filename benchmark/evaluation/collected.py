"""The results of an attack, collected batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dmlbench.attacks.base import Attack, Attacked, Column
from dmlbench.attacks.engine.ball import BALLS
from dmlbench.common.progress import Bar
from dmlbench.evaluation.measurement import Outcomes
from dmlbench.metrics.bootstrap import deciles, shares_above
from dmlbench.metrics.names import CLEAN_SUFFIX
from dmlbench.storage import adversarial

Parts = dict[str, list[torch.Tensor]]
PARTS = ("parts", "observed", "last")  # attributes of ``Collected`` that are ``Parts``


@dataclass
class Progress:
    """Moves a bar, whose units are queries, with every pass over a batch of them.

    Attributes:
        bar: the bar.
        passes: the most that a query takes.
        left: queries of the current batch that the bar has not been moved by.
    """

    bar: Bar
    passes: int
    left: float = 0.0

    def passed(self, rows: int) -> None:
        """One more pass begins, over so many images."""
        amount = min(rows / self.passes, self.left)
        self.left -= amount
        self.bar.advance(amount)

    def finish(self, note: str) -> None:
        """The batch is done, perhaps in fewer passes."""
        self.bar.advance(self.left, note)
        self.left = 0.0


@dataclass
class Collected:
    """The outcomes and the cost of an attack so far.

    Attributes:
        parts: column -> outcomes of each batch; with the suffix of clean images, too.
        observed: name -> what the attack observed of each batch (``Attack.observe``).
        last: column -> outcomes of the last iterate.
        passes: forward-backward passes.
        full_passes: the number if no query had left its batch early.
        forward_passes, full_forward_passes: the same of forward passes of a black box.
        flat: queries whose gradient was zero in the image at the start.
        radius: the largest distance of an image from the clean one, in the norm of the attack.
        norm: that norm.
        queries: number of queries that were attacked.
    """

    parts: Parts = field(default_factory=dict)
    observed: Parts = field(default_factory=dict)
    last: Parts = field(default_factory=dict)
    passes: int = 0
    full_passes: int = 0
    forward_passes: int = 0
    full_forward_passes: int = 0
    flat: int = 0
    radius: float = 0.0
    norm: str = "linf"
    queries: int = 0

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All of it as arrays of numbers, which ``restored`` reads; outcomes are float64, (N,)."""
        found: dict[str, npt.NDArray[Any]] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name in PARTS:
                for name, values in value.items():
                    found[f"{one.name} {name}"] = torch.cat(values).double().cpu().numpy()
            elif one.name != "norm":
                found[one.name] = np.array(value)
        return found

    @classmethod
    def restored(
        cls, arrays: Mapping[str, npt.NDArray[Any]], norm: str, device: torch.device
    ) -> Collected:
        """The inverse of ``arrays``; nothing is collected if there are none."""
        found = cls(norm=norm)
        for key, array in arrays.items():
            kind, _, name = key.partition(" ")
            if kind in PARTS:
                getattr(found, kind)[name] = [torch.from_numpy(array).to(device)]
            else:
                setattr(found, kind, array.item())
        return found

    def add(
        self,
        images: torch.Tensor,
        attacked: Attacked,
        found: Mapping[str, torch.Tensor],
        clean: Mapping[str, torch.Tensor],
    ) -> None:
        """One more batch: clean images, the attack's result, its outcomes and the clean ones."""
        self.queries += len(images)
        for name, values in found.items():
            self.parts.setdefault(name, []).append(values)
            self.parts.setdefault(name + CLEAN_SUFFIX, []).append(clean[name])
        for name, values in attacked.observed.items():
            self.observed.setdefault(name, []).append(values)
        for name, values in attacked.last.items():
            self.last.setdefault(name, []).append(values)
        done = attacked.perturbed
        self.passes += done.passes
        self.full_passes += done.full_passes
        self.forward_passes += done.forward_passes
        self.full_forward_passes += done.full_forward_passes
        self.flat += int(done.flat_start.sum())
        moved = BALLS[self.norm].distance(done.images, images)
        self.radius = max(self.radius, float(moved.max()))

    def so_far(self, columns: Sequence[Column]) -> str:
        """The means of the columns until now, in words."""
        return "  ".join(f"{c.name} {torch.cat(self.parts[c.name]).nanmean():.3g}" for c in columns)

    def outcomes(self, index: torch.Tensor, images: int) -> Outcomes:
        """Name -> (images,) value of each test image, NaN where it is not in ``index``."""
        found = {}
        for name, values in self.parts.items():
            spread = np.full(images, np.nan)
            spread[index.cpu().numpy()] = torch.cat(values).double().cpu().numpy()
            found[name] = spread
        return found

    def findings(
        self, attack: Attack, columns: Sequence[Column], outcomes: Outcomes, queries: int
    ) -> dict[str, Any]:
        """The observations that the cell stores beside its numbers, JSON types."""
        spent = self.passes + self.forward_passes
        full = self.full_passes + self.full_forward_passes
        found: dict[str, Any] = {
            **_means(self.observed),
            "clean": {c.name: float(np.nanmean(outcomes[c.name + CLEAN_SUFFIX])) for c in columns},
            "deciles": {c.name: deciles(outcomes[c.name]) for c in columns},
            "curves": {c.name: shares_above(outcomes[c.name]) for c in attack.columns if c.curve},
            "radius": self.radius,
            "flat_start": self.flat / queries,
            "passes": self.passes / queries,
            "passes_saved": 1 - spent / full if full else 0.0,
        }
        if self.full_forward_passes:
            found["forward_passes"] = self.forward_passes / queries
        if self.last:
            found["last_iterate"] = _means(self.last)
        return found


def _means(parts: Parts) -> dict[str, float]:
    """Name -> the mean over all queries; NaN does not count."""
    return {name: float(torch.cat(values).double().nanmean()) for name, values in parts.items()}


@contextmanager
def image_file(
    path: Path | None, attack: Attack, index: torch.Tensor
) -> Iterator[Callable[[torch.Tensor], None]]:
    """Yield a function that writes the next adversarial images to ``path``; None: to nowhere."""
    if path is None:
        yield lambda images: None
        return
    with adversarial.writer(path, index.cpu().numpy(), attack.perturbs) as add:

        def write(images: torch.Tensor) -> None:
            if attack.bits == 8:
                images = (255 * images).round().to(torch.uint8)
            add(images.cpu().numpy())

        yield write
