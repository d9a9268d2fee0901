"""A tiny made set in three forms whose queries and gallery differ, as a reader would list them.

Classes with distractors and sources that hide gallery items, lists of answers with junk and sources
that hide some of them, and one set of images whose sources hide more than the query itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import dmlbench as dml
from dmlbench.attacks.base import ATTACKS, Gallery
from dmlbench.core import spec
from dmlbench.core.protocol import Threat
from dmlbench.datasets.base import RetrievalData

N, Q, D = 23, 9, 5


def made(form: str) -> RetrievalData:
    """The tiny set; pixels do not matter here."""
    draw = np.random.default_rng(3)
    pixels = [draw.integers(0, 256, (n, 1, 8, 8)).astype(np.uint8) for n in (Q, N)]
    labels = [np.arange(n) % 3 for n in (Q, N)]
    if form == "one set":
        whole = dml.from_arrays(pixels[1], labels[1]).load(None)
        object.__setattr__(whole.test, "sources", np.arange(N) // 2 - (np.arange(N) < 2))
        return whole
    if form == "listed":
        positives = [sorted({i, (3 * i) % N, 20 - i}) for i in range(Q - 1)] + [[]]
        junk = [[(i + 11) % N] for i in range(Q)]
        hides = {(3 * i) % N: i for i in range(Q)}  # an answer, by its source
        sources = range(Q), [hides.get(n, Q) for n in range(N)]
        none = [[None] * n for n in (Q, N)]
        with pytest.warns(UserWarning, match="1 of 9 queries has no answer"):
            found = dml.from_arrays(
                pixels[0],
                none[0],
                gallery=(pixels[1], none[1]),
                positives=positives,
                junk=junk,
                sources=sources,
            )
        return found.load(None)
    named = [labels[0].tolist(), [None if i % 5 == 4 else int(x) for i, x in enumerate(labels[1])]]
    hidden = [i % 4 for i in range(Q)], [i % 7 for i in range(N)]  # 0 to 3 hide three or four
    return dml.from_arrays(pixels[0], named[0], gallery=(pixels[1], named[1]), sources=hidden).load(
        None
    )


class World:
    """The set as plain lists: what each query sees, and what answers it."""

    def __init__(self, form: str, metric: str = "E") -> None:
        self.data = data = made(form)
        generator = torch.Generator().manual_seed(1)
        raw = torch.randn(N + Q, D, generator=generator, dtype=torch.float64)
        raw = torch.nn.functional.normalize(raw, dim=1) if metric != "E" else raw
        self.x, self.q = raw[:N], raw[:N] if data.gallery is None else raw[N:]
        items, queries = data.searched, data.test
        self.sees, self.right = [], []
        for i in range(len(queries)):
            hidden = set() if data.gallery is not None else {i}
            if data.answers is not None:
                hidden |= set(data.answers.junk[i])
            if queries.sources is not None and items.sources is not None:
                own = queries.sources[i]
                hidden |= {n for n in range(N) if own >= 0 and items.sources[n] == own}
            self.sees.append([n for n in range(N) if n not in hidden])
            if data.answers is not None:
                wanted = set(data.answers.positives[i])
            else:
                wanted = {n for n in range(N) if 0 <= items.labels[n] == queries.labels[i]}
            self.right.append([n for n in self.sees[i] if n in wanted])
        self.gallery = Gallery(
            self.x,
            torch.from_numpy(items.labels),
            metric,  # type: ignore[arg-type]
            queries=self.q if data.gallery is not None else None,  # type: ignore[arg-type]
            relevance=data.relevance(),
            apart=data.gallery is not None,
        )
        self.index = torch.arange(len(queries))

    def d(self, e: torch.Tensor, n: int) -> float:
        """Distance of an embedding to a gallery item."""
        x = self.x[n]
        return float(1 - e @ x if self.gallery.metric == "C" else (e - x).norm())

    def wrong(self, i: int) -> list[int]:
        """The gallery items that a query sees and that do not answer it."""
        return [n for n in self.sees[i] if n not in self.right[i]]


FORMS = ("classes", "listed", "one set")


def moved(world: World) -> torch.Tensor:
    noise = torch.randn(world.q.shape, generator=torch.Generator().manual_seed(2)).double()
    e = world.q + 0.3 * noise
    return e if world.gallery.metric == "E" else torch.nn.functional.normalize(e, dim=1)


def goal_of(world: World, name: str, suite: str = "strict") -> Any:
    attack = spec.parse(name, ATTACKS).resolve(Threat(0.1, 0.02, 2, suite, 2))
    return attack.goal(world.gallery, world.index, seed=0)
