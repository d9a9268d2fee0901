"""Pictures of attacked queries, for people to look at."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dmlbench.common.files import write_atomically
from dmlbench.datasets.base import RetrievalData
from dmlbench.evaluation.attacked_queries import TOP, AttackedQuery

RIGHT, WRONG = "#0072b2", "#d55e00"  # Okabe and Ito: told apart by the colour-blind too


def draw(
    name: str, queries: Iterable[AttackedQuery], data: RetrievalData, folder: Path
) -> list[Path]:
    """Write a PNG for each query, ``query-<index>.png`` in ``folder``; returns their paths.

    Args:
        name: of the attack.
        queries: what it did to each.
        data: the data set they are of.
        folder: of the pictures of this attack alone.
    """
    paths = []
    for query in queries:
        values = (f"{key} {query.before[key]:.3g} to {x:.3g}" for key, x in query.after.items())
        of = f"test image {query.index}"
        if query.candidate is not None and data.gallery is not None:
            of = f"gallery image {query.candidate}"
        title = f"{name} on {of}: {', '.join(values)}"
        path = folder / f"query-{query.index:05d}.png"
        write_atomically(path, _picture(title, query, data))
        paths.append(path)
    return paths


def _picture(title: str, query: AttackedQuery, data: RetrievalData) -> bytes:
    """A PNG of two rows: the clean image and its top 5, the adversarial image and its top 5.

    Between them the perturbation, enlarged, grey where nothing changed.
    """
    from matplotlib.figure import Figure

    shown = data.searched if query.candidate is None else data.test
    clean, adversarial = query.clean.numpy(), query.perturbed.numpy()
    difference = adversarial - clean
    reach = float(np.abs(difference).max()) or 1.0
    figure = Figure(figsize=(1.25 * (TOP + 2), 3.3), layout="constrained", dpi=150)
    figure.suptitle(title, fontsize=9)
    grid = figure.add_gridspec(2, TOP + 2)
    middle = figure.add_subplot(grid[:, 1])
    _show(middle, difference / (2 * reach) + 0.5, f"perturbation\n×{1 / reach:.3g}")
    own = (
        data.test.labels[query.index]
        if query.candidate is None
        else data.searched.labels[query.candidate]
    )
    rows = (("clean", clean, query.top_before), ("adversarial", adversarial, query.top_after))
    for line, (name, image, retrieved) in enumerate(rows):
        _show(figure.add_subplot(grid[line, 0]), image, f"{name}\n{_class(own)}")
        seen = data.evaluation_pixels(torch.from_numpy(shown.images[list(retrieved)]))
        for place, item in enumerate(retrieved):
            axis = figure.add_subplot(grid[line, 2 + place])
            right = _answers(query, item, data)
            _show(axis, seen[place].numpy(), f"{place + 1}: {_class(shown.labels[item])}")
            for spine in axis.spines.values():
                spine.set_visible(True)
                spine.set_color(RIGHT if right else WRONG)
                spine.set_linewidth(2.5)
                spine.set_linestyle("solid" if right else "dashed")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _class(label: int) -> str:
    return "no class" if label < 0 else f"class {label}"


def _answers(query: AttackedQuery, item: int, data: RetrievalData) -> bool:
    """True if what was retrieved is an answer."""
    number, place = (query.index, item) if query.candidate is None else (item, query.candidate)
    if data.answers is not None:
        return place in data.answers.positives[number]
    label = data.test.labels[number]
    return bool(label >= 0 and label == data.searched.labels[place])


def _show(axis: Any, image: npt.NDArray[Any], title: str) -> None:
    axis.imshow(
        np.moveaxis(image, 0, -1).squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    axis.set_title(title, fontsize=7)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
