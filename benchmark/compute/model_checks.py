"""Checks of a network before its numbers are trusted, in every run and by ``dmlbench check``.

A network that fails one of the first four is refused: its numbers would depend on the batch size,
on what ran before, or on chance. Each of these functions returns what is wrong, why it matters and
the remedy; an empty text if nothing is. The others give flags.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from dmlbench.common.errors import CellError
from dmlbench.common.text import listed
from dmlbench.compute.embedding import HALVES, EmbeddingModel, embed, embed_together
from dmlbench.compute.randomness import global_seeds
from dmlbench.core.flags import LEAST_DISTINCT, ROUNDING, Flag, lengths, precision

Passes = Callable[[torch.Tensor], torch.Tensor]
DRAWS = "16"  # that a message proposes


def check_model(
    model: EmbeddingModel, network: nn.Module, images: torch.Tensor, number_format: str, draws: int
) -> list[Flag]:
    """Refuse a network whose numbers mean nothing, and flag one whose numbers may mislead.

    Args:
        model: frozen, in eval mode.
        network: the same, its kernels launched or replayed.
        images: (B, C, H, W) clean images.
        number_format: fp32, tf32 or bf16.
        draws: passes that an expectation is taken over; 1: the network has no randomness.

    Raises:
        CellError: it is refused.
    """

    def passes(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return network(x) if draws > 1 else embed(network, x)

    wrong = in_place(model, images) or not_finite(e := passes(images), "clean")
    if draws > 1:
        wrong = wrong or not_repeatable(passes, images)
    else:
        wrong = wrong or not_deterministic(passes, images, e, model)
        with torch.no_grad():
            together = embed_together(network, images)
        wrong = wrong or batch_dependent(passes, images, together, model, ROUNDING[number_format])
    if wrong:
        raise CellError(wrong)
    with torch.no_grad():
        raw = model.raw(images)
    norms = raw.double().norm(dim=1)
    coarse = "" if number_format == "bf16" else coarseness(raw)  # bf16: its rows say so
    return [*precision(coarse), *lengths(float(norms.min()), float(norms.max()))]


def in_place(passes: Passes, images: torch.Tensor) -> str:
    """The network must not change the images that it is given."""
    given = images.clone()
    with torch.no_grad():
        passes(given)
    if torch.equal(given, images):
        return ""
    return (
        "the network changes the images it is given, and the perturbation with them: work on a "
        "copy (no inplace=True on the first layer)"
    )


def not_finite(e: torch.Tensor, which: str) -> str:
    """The embeddings (B, D) must be finite numbers; ``which`` says of which images they are."""
    bad = int((~e.isfinite().all(1)).sum())
    if not bad:
        return ""
    return (
        f"the embeddings of {bad} of {len(e)} {which} images are not finite: weights that are "
        "not finite, a division by zero, or numbers too large for their format"
    )


def finite(e: torch.Tensor) -> torch.Tensor:
    """``e`` (B, D), embeddings of shown images, clean or not, that outcomes are read from.

    Raises:
        CellError: one is not finite. Distances to NaN are in no order, so that a query whose
            embedding is NaN would count as right, or in no mean.
    """
    if wrong := not_finite(e, "shown"):
        raise CellError(wrong)
    return e


def not_deterministic(
    passes: Passes, images: torch.Tensor, e: torch.Tensor, model: nn.Module
) -> str:
    """Another pass of the images must give the same bits as ``e``."""
    if torch.equal(e, passes(images)):
        return ""
    return (
        "the network is not deterministic: two forward passes of the same images differ"
        f"{_culprits(model)}. Switch its randomness off in eval mode, or measure it in expectation "
        f"over its draws: --eot {DRAWS} (in Python: eot={DRAWS})"
    )


def not_repeatable(passes: Passes, images: torch.Tensor) -> str:
    """With --eot, two passes after the same seed must give the same bits."""
    found = []
    for _ in range(2):
        with global_seeds(0, images.device):
            found.append(passes(images))
    if torch.equal(*found):
        return ""
    return (
        "the network draws random numbers that no seed repeats: take them from the global "
        "generator of PyTorch, NumPy or Python, not from one of its own"
    )


def batch_dependent(
    passes: Passes, images: torch.Tensor, e: torch.Tensor, model: nn.Module, tolerance: float
) -> str:
    """An image alone must embed as in a batch (``e``), up to ``tolerance`` of its length."""
    rows = [0, len(images) - 1]
    alone = torch.cat([passes(images[row : row + 1]) for row in rows])
    moved = moved_by(alone, e[rows])
    if moved <= tolerance:
        return ""
    return (
        f"an image embeds {moved:.1%} of its length away when it is alone and not in a batch"
        f"{_culprits(model)}: numbers would depend on the batch size. In eval mode, normalise by "
        "stored statistics and not by those of the batch"
    )


def moved_by(e: torch.Tensor, before: torch.Tensor) -> float:
    """The largest distance of a row of ``e`` from that of ``before``, in lengths of the latter."""
    length = before.double().norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    return float(((e.double() - before.double()).norm(dim=1) / length).max())


def coarseness(raw: torch.Tensor) -> str:
    """The numbers of embeddings (B, D) in words if they are coarser than float32; else empty.

    Zeros do not count: half the numbers behind a ReLU are.
    """
    values = torch.unique(raw, dim=0)
    values = values[values != 0]
    if not len(values):
        return ""
    for kind, name in HALVES.items():
        if torch.equal(values.to(kind).to(values.dtype), values):
            return f"have no more digits than {name}"
    distinct = len(values.unique()) / len(values)
    if distinct >= LEAST_DISTINCT:
        return ""
    return f"are rounded or saturated: only {distinct:.1%} of their numbers differ from each other"


def _culprits(model: nn.Module) -> str:
    """Layers that are known to do this, in brackets."""
    found = []
    for name, module in model.named_modules():
        batch = isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is None
        if (module.training or batch) and not list(module.children()):
            found.append(f"{name} ({type(module).__name__})")
    return f" (in eval mode, still as in training: {listed(found)})" * bool(found)
