"""What an attack did to a query, as a picture a person can read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from dmlbench.common.files import write_atomically
from dmlbench.compute.embedding import embed
from dmlbench.evaluation.evaluator import evaluation
from dmlbench.storage import checkpoint

if TYPE_CHECKING:
    from dmlbench.attacks.base import Attack
    from dmlbench.sweep.session import Session
    from dmlbench.sweep.tasks import Weights

TOP = 5
RIGHT, WRONG = "#0072b2", "#d55e00"  # Okabe and Ito: told apart by the colour-blind too


def draw_attacks(
    weights: Weights, attacks: Sequence[Attack], count: int, seed: int, session: Session
) -> list[Path]:
    """A PNG for each attack and each of the first ``count`` queries; returns their paths.

    They lie in ``results/adversarial/<first digits of the checkpoint>/<attack>/``.
    """
    data, threat = session.data, session.dataset.protocol.threat
    model = weights.model.build(data.channels, data.size)
    assert weights.path is not None
    checkpoint.load_weights(weights.path, model)
    root = session.store.root / "adversarial" / weights.facts["checkpoint"][:12]
    paths = []
    with evaluation(model, data, session.compute, session.reporter) as measured:
        index = measured.index[:count]
        clean, gallery = measured.images(index), measured.gallery
        for attack in (attack.resolve(threat) for attack in attacks):
            attacked = attack.run(measured.network, clean, index, gallery, seed=seed)
            adversarial = attacked.perturbed.images
            with torch.no_grad():
                after = embed(measured.network, adversarial)
            tops = [_top(gallery.distances(e), index) for e in (gallery.embeddings[index], after)]
            for row, query in enumerate(index.tolist()):
                pairs = [
                    (c.name, attacked.clean[c.name][row], attacked.outcomes[c.name][row])
                    for c in attack.columns
                ]
                said = ", ".join(f"{name} {a:.3g} to {b:.3g}" for name, a, b in pairs)
                title = f"{attack.card.name} on test image {query}: {said}"
                images = (clean[row].cpu().numpy(), adversarial[row].cpu().numpy())
                retrieved = [top[row].tolist() for top in tops]
                png = _picture(title, images, retrieved, query, session)
                path = root / _safe(attack.card.name) / f"query-{query:05d}.png"
                write_atomically(path, png)
                paths.append(path)
    return paths


def _top(distance: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    masked = distance.scatter(1, index[:, None], torch.inf)
    return masked.topk(min(TOP, distance.shape[1] - 1), dim=1, largest=False).indices


def _picture(
    title: str,
    images: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    retrieved: Sequence[Sequence[int]],
    query: int,
    session: Session,
) -> bytes:
    """Two lines: clean image and its top 5; adversarial image and its top 5; between them the
    perturbation, grey where nothing changed.
    """
    from matplotlib.figure import Figure

    test = session.data.test
    clean, adversarial = images
    difference = adversarial - clean
    reach = float(np.abs(difference).max()) or 1.0
    figure = Figure(figsize=(1.25 * (TOP + 2), 3.3), layout="constrained", dpi=150)
    figure.suptitle(title, fontsize=9)
    grid = figure.add_gridspec(2, TOP + 2)
    middle = figure.add_subplot(grid[:, 1])
    _show(middle, difference / (2 * reach) + 0.5, f"perturbation\n×{1 / reach:.3g}")
    own = test.labels[query]
    for line, (name, image) in enumerate((("clean", clean), ("adversarial", adversarial))):
        _show(figure.add_subplot(grid[line, 0]), image, f"{name}\nclass {own}")
        seen = session.data.evaluation_pixels(torch.from_numpy(test.images[retrieved[line]]))
        for place, item in enumerate(retrieved[line]):
            axis = figure.add_subplot(grid[line, 2 + place])
            right = test.labels[item] == own
            _show(axis, seen[place].numpy(), f"{place + 1}: class {test.labels[item]}")
            for spine in axis.spines.values():
                spine.set_visible(True)
                spine.set_color(RIGHT if right else WRONG)
                spine.set_linewidth(2.5)
                spine.set_linestyle("solid" if right else "dashed")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _show(axis: Any, image: npt.NDArray[Any], title: str) -> None:
    axis.imshow(
        np.moveaxis(image, 0, -1).squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    axis.set_title(title, fontsize=7)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _safe(name: str) -> str:
    return {"+": f"{name[:-1]}-plus", "-": f"{name[:-1]}-minus"}.get(name[-1], name)
