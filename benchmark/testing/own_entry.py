"""The check that a query does not find itself.

Each query is also an item of the gallery. Strictly, that item is no answer: it must be neither a
target nor be counted in a rank or a recall. The clean embedding of the query is another matter: an
attack may start from it (ES moves away from it), and reads it as ``gallery.queries[index]`` (or,
where queries and gallery are one, ``gallery.embeddings[index]``).

So the item is moved far away, or onto the perturbed query, while ``gallery.embeddings[index]`` and
the neighbours that the gallery itself gives stay those of the clean embedding. Nothing may change.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from dmlbench.attacks.base import Attack, Gallery
from dmlbench.testing.attack_subject import SEED, trained_on_itself
from dmlbench.testing.findings import FlawError, LeftOutError

ITEMS, DIMENSIONS, CLASSES = 40, 8, 5
READS = (torch.Tensor.__getitem__, torch.Tensor.index_select, torch.index_select)


class _CleanQueries(TorchFunctionMode):
    """Reading the gallery at ``index`` gives the clean embedding, wherever the item was moved."""

    def __init__(self, index: torch.Tensor, moved: torch.Tensor, clean: torch.Tensor) -> None:
        super().__init__()
        self.index, self.moved, self.clean = index, moved, clean

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in READS or not isinstance(result, torch.Tensor):
            return result
        key = args[-1] if not kwargs else kwargs.get("index", args[-1])
        alike = result.shape[-1:] == self.moved.shape[-1:] and result.is_floating_point()
        if not alike or not self._is_index(key):
            return result
        if not torch.equal(result, self.moved.to(result.dtype).expand_as(result)):
            return result  # something else that is kept by index
        return self.clean.to(result.dtype).expand_as(result).clone()

    def _is_index(self, key: Any) -> bool:
        if isinstance(key, int):
            return key == int(self.index)
        whole = isinstance(key, torch.Tensor) and not key.is_floating_point()
        return whole and key.dtype != torch.bool and bool((key == self.index).all())


def own_entry(attack: Attack) -> None:
    """FlawError if the query's own item changes a loss, a gradient or an outcome.

    Raises:
        LeftOutError: the attack follows the published code (suite ``ers``), which counts the item.
    """
    if not attack.strict:
        raise LeftOutError("suite ers counts the query's own entry where the published code does")
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(ITEMS, DIMENSIONS, dtype=torch.float64, generator=generator)
    x = torch.nn.functional.normalize(items, dim=1)
    gallery = trained_on_itself(Gallery(x, torch.arange(ITEMS) % CLASSES, "N"))
    every = torch.arange(ITEMS)
    gallery.nearest(every, ITEMS - 1)  # kept by the gallery, and by its copies with a moved item
    gallery.nearest_of_another_class(every)
    gallery.nearest_unlike_the_top1(every)
    assert gallery.tie > 0
    for query in range(1, ITEMS, 7):  # not 0, which is the row of a batch of one as well
        index, clean = torch.tensor([query]), x[query : query + 1]
        noise = torch.randn(1, DIMENSIONS, dtype=torch.float64, generator=generator)
        neighbour = x[gallery.nearest(index, 1)[0]]
        for e in (clean + 0.02 * noise, clean + neighbour, noise):
            e = torch.nn.functional.normalize(e, dim=1)
            expected = _seen(attack, gallery, index, e, clean, clean)
            for where, moved in (("far away", -clean), ("onto the perturbed query", e)):
                found = _seen(attack, gallery, index, e, moved, clean)
                _compare(expected, found, where)


def _seen(
    attack: Attack,
    gallery: Gallery,
    index: torch.Tensor,
    e: torch.Tensor,
    moved: torch.Tensor,
    clean: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Losses, gradients and outcomes with the query's item moved to ``moved``."""
    embeddings = gallery.embeddings.clone()
    embeddings[index] = moved
    other = dataclasses.replace(gallery, embeddings=embeddings)
    with _CleanQueries(index, moved, clean):
        goal = attack.goal(other, index, SEED)
        found = {}
        for step in (0, 2):
            found["loss"], found["gradient"] = goal.value_and_grad(e.clone(), step)
        return found | {f"outcome {k}": v for k, v in goal.outcome(e.clone()).items()}


def _compare(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], where: str) -> None:
    for name, value in expected.items():
        if not torch.allclose(value, found[name], rtol=1e-9, atol=1e-9, equal_nan=True):
            raise FlawError(
                f"the {name} of a query changes when its own entry in the gallery is moved "
                f"{where}: the query finds itself, as a target or in a rank or recall. It is no "
                "answer to its own search, and counting it makes every model look better: leave "
                "what the query never sees out (gallery.draw, gallery.nearest, or put inf there by "
                "gallery.relevance.excluded.put). An attack that starts from the clean embedding "
                "reads it as gallery.queries[index]"
            )
