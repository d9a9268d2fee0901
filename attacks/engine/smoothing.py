"""Gaussian smoothing of an embedding: its mean under noise, and what is known of it.

    h(x) = E f(x + s z),    z standard normal in every pixel,  |f| <= 1

h moves slowly. For every unit vector u, with g = u . f in [-1, 1],

    u . grad_x h . v = E[g(x + s z) (z . v)] / s <= E|z . v| / s = sqrt(2 / pi) / s    (|v|_2 = 1)

so h is Lipschitz with L = sqrt(2 / pi) / s (RetrievalGuard, Wu et al., ICML 2022). For one u more
is known: (1 + g) / 2 is in [0, 1], and PHI^-1 of its mean changes by at most 1 / s per unit of
length, PHI the normal distribution function (Salman et al., NeurIPS 2019, lemma 2). So where
u . h(x) = m > 0, u . h stays positive while x moves by less than

    R(m) = s PHI^-1((1 + m) / 2) = s sqrt(2) erfinv(m) >= m / L

with equality in the limit of small m. Of f(x) = sign(w . x) it is the exact distance at which the
sign of h changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from dmlbench.attacks.engine.targets import normal
from dmlbench.common.lazy import torch

Embed = Callable[["torch.Tensor"], "torch.Tensor"]

AT_ONCE = 8  # noisy copies of each image that are drawn together
LARGEST = 2.0  # |f - h|, as both have length 1 at most
ITERATIONS = 50


def radius(margin: torch.Tensor, sigma: float) -> torch.Tensor:
    """R(m) for ``margin`` (B,) float64; 0 where it is negative, inf from 1 on."""
    m = margin.clamp(0, 1)
    found: torch.Tensor = sigma * math.sqrt(2) * torch.erfinv(m)
    return found


def noisy(
    images: torch.Tensor, index: torch.Tensor, seed: int, purpose: str, sigma: float, count: int
) -> Iterator[torch.Tensor]:
    """Yield ``count`` times ``images`` (B, C, H, W) with noise, not clipped.

    The noise of each query follows from the seed, the purpose and its number in ``index`` alone.
    """
    for first in range(0, count, AT_ONCE):
        z = normal(index, seed, f"{purpose} {first}", (AT_ONCE, *images.shape[1:]))
        for number in range(min(AT_ONCE, count - first)):
            yield images + sigma * z[:, number]


def smoothed(
    embed: Embed,
    images: torch.Tensor,
    index: torch.Tensor,
    seed: int,
    purpose: str,
    sigma: float,
    count: int,
) -> torch.Tensor:
    """(B, D) float64 mean embedding of ``count`` noisy copies of ``images``, drawn by ``noisy``."""
    total: Any = 0.0
    with torch.no_grad():
        for x in noisy(images, index, seed, purpose, sigma, count):
            total = total + embed(x).double()
    mean: torch.Tensor = total / count
    return mean


def mean_error(length: torch.Tensor, count: int, confidence: float) -> torch.Tensor:
    """(B,) bound on the distance of a mean of ``count`` embeddings from h, for one query each.

    Let X_i = f(x + s z_i) - h, |X_i| <= 2, v = E|X_i|^2 <= 1 - |h|^2, and l = ln(2 / (1 - c)).
    Bennett's inequality in a Hilbert space (Pinelis, Ann. Prob. 22, 1994, theorem 3.4) gives, in
    Bernstein's form, with probability c

        |mean - h| <= B(v) = M l / N + sqrt((M l / N)^2 + 2 v l / N),     M = 2 / 3.

    v is not known, but |h| >= |mean| - |mean - h|. So if e bounds the error, then so does
    B(1 - (|mean| - e)^2), where |mean| > e. Begin with e = 2, which always holds, and repeat until
    e no longer changes. Every step follows from the same event, so the confidence stays c.

    Args:
        length: (B,) float64, |mean|.
        count: N.
        confidence: c, below 1.
    """
    share = math.log(2 / (1 - confidence)) / count
    first, error = LARGEST / 3 * share, torch.full_like(length, LARGEST)
    for _ in range(ITERATIONS):
        least = (length - error).clamp(0, 1)
        variance = 1 - least.square()
        error = error.minimum(first + (first**2 + 2 * variance * share).sqrt())
    return error


class MeanOverNoise:
    """The mean embedding over copies with noise that is fixed, differentiable in the images.

    All queries have the same noise, so it does not depend on the batch. Each copy is embedded
    again for its gradient: one copy's graph is in memory at a time.
    """

    def __init__(
        self, embed: Embed, like: torch.Tensor, seed: int, purpose: str, sigma: float, count: int
    ) -> None:
        none = torch.zeros_like(like[:1])
        zero = torch.zeros(1, dtype=torch.int64, device=like.device)
        self.embed = embed
        self.noise = list(noisy(none, zero, seed, purpose, sigma, count))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) images -> (B, D) mean embeddings."""
        from dmlbench.attacks.engine.mean_pass import MeanPass  # it needs torch to be defined

        apply: Any = MeanPass.apply
        e: torch.Tensor = apply(images, self)
        return e
