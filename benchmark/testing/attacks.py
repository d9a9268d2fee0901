"""Checks of an attack: its columns, its goal, then whole attacks on a tiny network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import suppress

import torch

from dmlbench.attacks.base import RESERVED, Column, Gallery
from dmlbench.attacks.engine.column import UNITS
from dmlbench.common.errors import CellError
from dmlbench.compute.embedding import embed
from dmlbench.compute.randomness import global_seeds
from dmlbench.datasets.base import Split
from dmlbench.testing import cards, goals
from dmlbench.testing.attack_subject import SEED, THREAT, Subject, alike, near, noise
from dmlbench.testing.findings import FlawError, require
from dmlbench.testing.own_entry import own_entry
from dmlbench.testing.randomness import no_global_randomness
from dmlbench.testing.tiny import tiny_data


def columns(s: Subject) -> None:
    """Columns have names of their own."""
    found = s.attack.columns
    require(
        found and all(isinstance(c, Column) for c in found),
        "it has no columns: write columns = (Column('NAME', '%', 'higher'),), a number each",
    )
    for c in found:
        require(
            c.name.isprintable() and c.name.strip() and not set(c.name) & set("(,|;"),
            f"a column is named {c.name!r}: it heads a table, so leave out brackets, commas, "
            "semicolons, bars and what cannot be seen",
        )
        require(
            not c.name.endswith(" clean"),
            f"a column is named {c.name!r}: clean values of a column are stored under such a name",
        )
        require(
            c.unit in UNITS,
            f"column {c.name} has the unit {c.unit!r}: write '%', '/255' (grey levels) or ''",
        )
        require(
            c.better in ("higher", "lower"),
            f"column {c.name} says {c.better!r} is better: write 'higher' or 'lower', for the "
            "defender",
        )
        require(c.name not in RESERVED, f"column {c.name} is a metric of the benchmark: rename it")
    require(
        len({c.name for c in found}) == len(found),
        "two of its columns have one name: a table would show one of them only",
    )


def randomness(s: Subject) -> None:
    """No global random generator is read or advanced."""
    index = torch.arange(40)
    e = near(s.gallery, index, seed=3)
    sources = [*type(s.attack).__mro__]
    with global_seeds(1):
        with no_global_randomness("goal()", sources):
            goal = s.goal(s.gallery, index)
        sources += type(goal).__mro__
        with no_global_randomness("value_and_grad()", sources):
            goal.value_and_grad(e, 1)
        with no_global_randomness("outcome()", sources):
            goal.outcome(e)
        with no_global_randomness("run()", sources), suppress(CellError):  # 'outcomes' tells it
            s.run()
    found = []
    for seed in (1, 2):
        with global_seeds(seed):
            goal = s.goal(s.gallery, index)
            found.append([*goal.value_and_grad(e, 1), *goal.outcome(e).values()])
            with suppress(CellError):
                run = s.run()
                found[-1] += [run.perturbed.images, *run.outcomes.values()]
    require(
        all(alike(a, b) for a, b in zip(*found, strict=True)),
        "two runs with the same seed give different losses, images or outcomes: it reads the seed "
        "of a global generator, the time, or something that an earlier run left behind. A number "
        "could not be measured again: let everything follow from (gallery, index, seed)",
    )


def outcomes(s: Subject) -> None:
    """One number a query and column, within the range of its unit."""
    index, gallery = torch.arange(40), s.gallery
    goal, some = s.goal(gallery, index), noise(gallery.embeddings.shape, seed=4).float()
    random = torch.nn.functional.normalize(some, dim=1)
    expected = {c.name for c in s.attack.columns}
    for e in (gallery.embeddings, random, -gallery.embeddings):
        found = goal.outcome(e)
        require(
            set(found) == expected,
            f"outcome() reports {sorted(found)}: its columns are {sorted(expected)}",
        )
        for c in s.attack.columns:
            _in_range(c, found[c.name], len(index))
    for c in s.attack.columns:
        value = s.run().outcomes[c.name]
        _in_range(c, value, len(index))
        require(not value.isnan().all(), f"column {c.name} is NaN for every query: none counts")


def _in_range(column: Column, value: torch.Tensor, rows: int) -> None:
    what = f"outcome {column.name}"
    require(
        value.shape == (rows,) and not value.isinf().any(),
        f"{what} has shape {tuple(value.shape)}, or is infinite: it must be a finite number for "
        f"each query, ({rows},), or NaN where a query does not count",
    )
    low, high = (0, 100) if column.unit == "%" else (-math.inf, math.inf)
    outside = value[(value < low - 1e-4) | (value > high + 1e-4)]
    if len(outside):
        raise FlawError(
            f"{what} is {float(outside[0]):g}{column.unit} for a query: a percentage is within 0 "
            "and 100. A mean over such numbers means nothing: count again what it is a share of"
        )


def zero_eps(s: Subject) -> None:
    """With eps = 0 nothing changes: the outcome is the clean one."""
    attack = dataclasses.replace(s.component, eps=0.0).resolve(THREAT)
    found = s.run(attack)
    for name, value in found.outcomes.items():
        require(
            alike(value, found.clean[name], 1e-5),
            f"with eps=0 the outcome {name} is not that of the clean images: what it measures is "
            "not only what the perturbation does. It must follow from the embeddings it is given",
        )


def hurts(s: Subject) -> None:
    """It does something: an untrained network gets worse at a moderate eps."""
    column = s.attack.columns[0]
    found = s.run()
    attacked = found.outcomes[column.name].nanmean().item()
    clean = found.clean[column.name].nanmean().item()
    worse = attacked < clean if column.better == "higher" else attacked > clean
    require(
        worse,
        f"it does nothing: {column.name} of an untrained network is {clean:.4g} clean and "
        f"{attacked:.4g} after {s.attack.steps} steps with eps {s.attack.eps}, where "
        f"{column.better} is better for the defender. The loss is minimised: look at its sign, and "
        "at the direction that the column calls better",
    )


def untouched(s: Subject) -> None:
    """Images and gallery are not changed in place."""
    index = torch.arange(len(s.images))
    images, gallery = s.images.clone(), s.gallery.embeddings.clone()
    s.attack.run(s.model, images, index, s.gallery, seed=SEED)
    require(
        torch.equal(images, s.images) and torch.equal(gallery, s.gallery.embeddings),
        "it changes the images or the gallery in place, which other attacks use afterwards: work "
        "on a copy",
    )


def apart(s: Subject) -> None:
    """It works where the queries are apart from the gallery, so that a query is no item of it."""
    data = tiny_data()
    items = Split(data.train.images[::4], data.train.labels[::4])
    images = data.evaluation_pixels(torch.from_numpy(items.images))
    gallery = Gallery(
        embed(s.model, images),
        torch.from_numpy(items.labels),
        s.model.metric,
        images=lambda index: images[index],
        queries=s.gallery.embeddings,
        relevance=dataclasses.replace(data, gallery=items).relevance(),
        query_images=lambda index: s.images[index],
        apart=True,
        train=s.train_split,
    )
    index = torch.arange(len(items), len(s.images))[::5]  # numbers that no item has
    try:
        s.attack.run(s.model, s.images[index], index, gallery, seed=SEED)
    except IndexError as error:
        raise FlawError(
            "it looks for a query among the items of the gallery, and fails where queries and "
            f"gallery are apart ({error}): another image has the query's number there. Clean "
            "embeddings of queries are gallery.queries[index], and gallery.relevance has what "
            "answers them"
        ) from None


CHECKS: dict[str, Callable[[Subject], None]] = {
    "card": lambda s: cards.card(s.component),
    "parameters": lambda s: cards.parameters(s.component),
    "columns": columns,
    "randomness": randomness,
    "gradient": goals.gradient,
    "subset": goals.subset,
    "batch": goals.batch,
    "own entry": lambda s: own_entry(s.attack),
    "apart": apart,
    "outcomes": outcomes,
    "eps = 0": zero_eps,
    "hurts": hurts,
    "untouched": untouched,
    "memory": goals.memory,
}
NEEDS = dict.fromkeys(("gradient", "subset", "batch", "own entry", "apart"), "randomness")
NEEDS |= dict.fromkeys(("eps = 0", "hurts", "untouched"), "outcomes")
