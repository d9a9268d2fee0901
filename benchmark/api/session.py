"""The session of a call from Python: its data set, and a results folder that may be temporary."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dmlbench.attacks.base import Attack
from dmlbench.common.errors import UserError
from dmlbench.common.lazy import np
from dmlbench.core import spec
from dmlbench.core.registry import Component
from dmlbench.datasets.base import DATASETS, Dataset
from dmlbench.sweep.requests import parse_attacks
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
    return dataset


def plain(value: Any) -> Any:
    """A number of NumPy as one of Python; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


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


def _folder(what: str, given: Any) -> Path | None:
    """A folder as a path, or None as it is; UserError if it is neither."""
    if given is None:
        return None
    if not isinstance(given, str | os.PathLike):
        raise UserError(f"{what} must be the path of a folder, got {given!r}")
    return Path(given)


@contextmanager
def opened(
    dataset: Dataset,
    results: str | Path | None,
    data_root: str | Path | None,
    cache: str | Path | None,
    **options: Any,
) -> Iterator[Session]:
    """The session while the context lasts.

    Gradients are on and autocast is off, whatever the caller has set: ``precision`` alone says in
    which number format is computed.

    Args:
        dataset: what is measured on.
        results: the results folder; None: an empty temporary one that is deleted at the end.
        data_root, cache: where data sets and decoded images lie; None: the usual places.
        options: those of ``sweep.session.open_session``.
    """
    import torch

    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        tempfile.TemporaryDirectory(prefix="dmlbench-") as empty,
        open_session(
            dataset,
            _folder("results", results) or Path(empty),
            data_root=_folder("data_root", data_root),
            cache=_folder("cache", cache),
            **{name: plain(value) for name, value in options.items()},
        ) as session,
    ):
        yield session
