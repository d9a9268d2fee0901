"""Random targets and random starts that depend on the seed and the query alone.

Every gallery item gets a random priority from (seed, purpose, query, item). The items of least
priority among those allowed (the query's pool) are its targets. So a query's targets do not depend
on batch size, order, subset or workers; a larger count extends a smaller one; and where rounding
swaps two neighbours inside a pool, nothing changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

from dmlbench.common.errors import CellError
from dmlbench.common.hashing import derived_seed
from dmlbench.common.lazy import np, torch

COARSE = 32  # random numbers a side of an image, where a search has few passes (advorder)


def draw(
    size: int,
    index: torch.Tensor,
    count: int,
    seed: int,
    purpose: str,
    pool: torch.Tensor | None = None,
    excluded: torch.Tensor | None = None,
) -> torch.Tensor:
    """``count`` different targets for each query, drawn uniformly from its pool.

    ``Gallery.draw`` knows ``size`` and ``excluded``.

    Args:
        size: number of gallery items.
        index: (B,) the numbers of the queries.
        count: number of targets for each query.
        seed: the cell's seed.
        purpose: the attack's name, so that other attacks draw other targets.
        pool: (B, P) gallery positions to draw from, different within a row; None: everything
            but ``excluded``.
        excluded: (B, k) gallery positions that are not drawn, -1 for none; None: the query's own
            number, where every item is in turn the query.

    Returns:
        (B, count) gallery positions, on the device of ``index``.

    Raises:
        CellError: the pool is smaller than ``count``.
    """
    left_out = index[:, None] if excluded is None else excluded
    most = int((left_out >= 0).sum(1).max()) if len(index) else 0
    available = size - most if pool is None else pool.shape[1]
    if count > available:
        raise CellError(
            f"{purpose} draws {count} targets per query, but the gallery of {size} leaves "
            f"{available} to draw from"
        )
    hidden = left_out.cpu().numpy()
    pools = None if pool is None else pool.cpu().numpy()
    chosen = np.empty((len(index), count), dtype=np.int64)
    for row, query in enumerate(index.tolist()):
        priority = _philox(seed, purpose, query).random_raw(size)
        if pools is None:
            priority[hidden[row][hidden[row] >= 0]] = np.iinfo(priority.dtype).max
            least = np.argpartition(priority, count - 1)[:count]
        else:
            least = pools[row]
        chosen[row] = least[np.argsort(priority[least])[:count]]
    return torch.from_numpy(chosen).to(index.device)


def positions(size: int, count: int, seed: int = 0, purpose: str = "candidates") -> torch.Tensor:
    """(count,) positions below ``size`` in random order, each once before one comes again."""
    generator = np.random.default_rng(derived_seed(seed, purpose))
    rounds = [generator.permutation(size) for _ in range(-(-count // size))]
    return torch.from_numpy(np.concatenate(rounds)[:count])


def random_start(
    images: torch.Tensor, eps: float, index: torch.Tensor, seed: int, restart: int
) -> torch.Tensor:
    """``images`` (B, C, H, W) plus uniform noise in [-eps, eps] that depends on the query alone."""
    noise = np.empty(images.shape, dtype=np.float32)
    for row, query in enumerate(index.tolist()):
        generator = np.random.Generator(_philox(seed, f"start {restart}", query))
        noise[row] = generator.uniform(-eps, eps, noise[row].shape)
    return images + torch.from_numpy(noise).to(images.device)


def uniform(index: torch.Tensor, seed: int, purpose: str, shape: tuple[int, ...]) -> torch.Tensor:
    """(B, *shape) float64, uniform in [0, 1); each row depends on the seed and its query alone."""
    found = np.empty((len(index), *shape))
    for row, generator in zip(found, _generators(index, seed, purpose), strict=True):
        generator.random(out=row)
    return torch.from_numpy(found).to(index.device)


def normal(index: torch.Tensor, seed: int, purpose: str, shape: tuple[int, ...]) -> torch.Tensor:
    """(B, *shape) float32, standard normal; each row depends on the seed and its query alone."""
    found = np.empty((len(index), *shape), dtype=np.float32)
    for row, generator in zip(found, _generators(index, seed, purpose), strict=True):
        generator.standard_normal(out=row, dtype=np.float32)
    return torch.from_numpy(found).to(index.device)


def coarse(
    draw: Callable[[torch.Tensor, int, str, tuple[int, ...]], torch.Tensor],
    index: torch.Tensor,
    seed: int,
    purpose: str,
    images: torch.Tensor,
    side: int = COARSE,
) -> torch.Tensor:
    """Random numbers of the shape and type of ``images`` (B, C, H, W), at most ``side`` a side.

    Of larger images each number covers a block of pixels. ``draw`` is ``uniform`` or ``normal``.
    """
    _, channels, height, width = images.shape
    small = draw(index, seed, purpose, (channels, min(height, side), min(width, side))).to(images)
    if small.shape == images.shape:
        return small
    return torch.nn.functional.interpolate(small, size=(height, width), mode="nearest")


def _generators(index: torch.Tensor, seed: int, purpose: str) -> Iterator[np.random.Generator]:
    """One for each query."""
    for query in index.tolist():
        yield np.random.Generator(_philox(seed, purpose, query))


def _philox(seed: int, purpose: str, query: int) -> np.random.Philox:
    word = int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "little")
    return np.random.Philox(key=np.array([word, query], dtype=np.uint64))
