"""The session of a call from Python: its data set, and a results folder that may be temporary."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dmlbench.common.errors import UserError
from dmlbench.core import spec
from dmlbench.datasets.base import DATASETS, Dataset
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


@contextmanager
def opened(
    dataset: Dataset,
    results: str | Path | None,
    data_root: str | Path | None,
    cache: str | Path | None,
    **options: Any,
) -> Iterator[Session]:
    """The session while the context lasts. Gradients are on, whatever the caller has set.

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
        tempfile.TemporaryDirectory(prefix="dmlbench-") as empty,
        open_session(
            dataset,
            Path(empty if results is None else results),
            data_root=None if data_root is None else Path(data_root),
            cache=None if cache is None else Path(cache),
            **options,
        ) as session,
    ):
        yield session
