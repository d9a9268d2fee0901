"""``verify_attack``: adversarial images from outside, against a stored row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dmlbench.analysis.external import Contributor
from dmlbench.common.files import as_path, path_or_none
from dmlbench.datasets.base import Dataset
from dmlbench.sweep.external import Verified, verify_file


def verify_attack(
    images: str | Path,
    row: str,
    *,
    by: str,
    link: str = "",
    where: Sequence[str] = (),
    results: str | Path = "results",
    dataset: str | Dataset | None = None,
    checkpoint: str | Path | None = None,
    network: str | None = None,
    allow_code: bool = False,
    device: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    data_root: str | Path | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Verified:
    """Verify adversarial images against a stored row; they join its worst case if they break more.

    Arguments that are not listed here are those of ``dmlbench.evaluate``.

    Args:
        images: an .npz file of ``index`` (n,), positions in the test split, and ``images``
            (n, C, H, W), float32 in [0, 1] or uint8:
            ``numpy.savez("mine.npz", index=index, images=images)``.
        row: the model: its defense as it was given to ``run``, its label, or a checkpoint.
        by: the name of those who made the images; tables show it.
        link: address of a paper or of code.
        where: conditions such as ``"suite=auto"``, where the model has several rows.
        results: the results folder of the row.
        dataset: the data set of the row; None: its spec, as the row has it.
        checkpoint: file of the row's weights; None: those in ``results``.
        network: spec of the network of ``checkpoint``.
        allow_code: run the code of a data set that the row names, or of a network in a manifest.

    Returns:
        How many queries they break, and the row's Robust R@1 ``before`` and ``after``.

    Raises:
        UserError: no such row, or the file is not one of images in the row's ball.
    """
    return verify_file(
        as_path("images", images),
        row,
        Contributor(by, link),
        as_path("results", results),
        where=where,
        dataset=dataset,
        checkpoint=path_or_none("checkpoint", checkpoint),
        model=network,
        allow_code=allow_code,
        device=device,
        batch_size=batch_size,
        threads=threads,
        data_root=path_or_none("data_root", data_root),
        cache=path_or_none("cache", cache),
        progress=progress,
    )
