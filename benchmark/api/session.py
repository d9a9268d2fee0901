"""The session of a call from Python: its data set, and a results folder that may be temporary."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from dmlbench.attacks.base import Attack
from dmlbench.common.errors import UserError
from dmlbench.common.files import path_or_none
from dmlbench.common.lazy import np
from dmlbench.core import spec
from dmlbench.core.registry import Component
from dmlbench.datasets.base import DATASETS, Dataset
from dmlbench.sweep.requests import parse_attacks, refused_values
from dmlbench.sweep.session import Session, open_session


def dataset_of(dataset: str | Dataset) -> Dataset:
    """The data set that a spec names, or the one that was given; UserError if it is none."""
    if isinstance(dataset, str):
        return spec.parse(dataset, DATASETS)
    if not isinstance(dataset, Dataset):
        raise UserError(
            f"dataset must be a spec such as 'fashion-mini', or what dmlbench.from_arrays(images, "
            f"labels) makes of arrays or tensors, got {type(dataset).__name__}"
        )
    with refused_values():
        spec.check(dataset)
    return dataset


def plain(value: Any) -> Any:
    """A number of NumPy as one of Python; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def seeds_of(given: Any) -> list[Any]:
    """Seeds as a list of Python's numbers; UserError unless it is a list."""
    single = not isinstance(given, Iterable) or getattr(given, "ndim", 1) == 0
    if single or isinstance(given, str | Mapping):
        raise UserError(f"seeds must be a list of whole numbers such as [0, 1], got {given!r}")
    return list(map(plain, given))


def names_of(what: str, given: Any, kind: type[Component] | type[str] = str) -> list[Any]:
    """One name or several (specs, or components of a kind) as a list; UserError if one is none."""
    if isinstance(given, Mapping):
        raise UserError(f"{what} must be a name or a list of names, got {given!r}")
    several = isinstance(given, Iterable) and not isinstance(given, str)
    found = list(given) if several else [given]
    for one in found:
        if not isinstance(one, str | kind):
            raise UserError(f"{what} must be a name or a list of names, got {one!r}")
    return found


def attacks_of(
    attacks: str | Attack | Sequence[str | Attack] | None, suite: str | Sequence[str] | None
) -> list[Attack]:
    """The attacks that the arguments of ``evaluate`` ask for; of an empty list none."""
    named = [] if attacks is None else names_of("attacks", attacks, Attack)
    if attacks is not None and not named:
        return []
    default = [] if named else ["strict"]
    return parse_attacks(named, default if suite is None else names_of("suite", suite))


@contextmanager
def _usual_defaults() -> Iterator[None]:
    """New tensors are float32 and on the CPU, whatever the caller has set, within a block."""
    import torch

    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    try:
        with nullcontext() if device.type == "cpu" else torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextmanager
def opened(
    dataset: Dataset,
    results: str | Path | None,
    data_root: str | Path | None,
    cache: str | Path | None,
    **options: Any,
) -> Iterator[Session]:
    """The session while the context lasts.

    Gradients are on, autocast is off, and new tensors are float32 on the CPU, whatever the caller
    has set: ``precision`` and ``device`` alone say how and where is computed.

    Args:
        dataset: what is measured on.
        results: the results folder; None: an empty temporary one that is deleted at the end.
        data_root, cache: where data sets and decoded images lie; None: the usual places.
        options: those of ``sweep.session.open_session``.
    """
    import torch

    with (
        _usual_defaults(),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        tempfile.TemporaryDirectory(prefix="dmlbench-") as empty,
        open_session(
            dataset,
            path_or_none("results", results) or Path(empty),
            data_root=path_or_none("data_root", data_root),
            cache=path_or_none("cache", cache),
            **{name: plain(value) for name, value in options.items()},
        ) as session,
    ):
        yield session
