"""Adversarial images from outside, verified and measured (``external_rows`` joins them to a row).

Nothing in a file is believed but its pixels: whether they lie in the row's ball, and what becomes
of the queries, is found out here, with the row's own weights and gallery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import structs

from dmlbench.analysis.csv_files import export
from dmlbench.analysis.external import KIND, Contributor
from dmlbench.attacks.engine.ball import RADIUS_TOLERANCE
from dmlbench.common.errors import CellError, UserError
from dmlbench.common.lazy import np, torch
from dmlbench.core import spec
from dmlbench.datasets.base import DATASETS, Dataset
from dmlbench.metrics.bootstrap import Estimate, bootstrap_mean
from dmlbench.metrics.names import WORST
from dmlbench.models.base import parse_model
from dmlbench.storage import adversarial
from dmlbench.storage.cell import ColumnInfo, PlannedCell
from dmlbench.storage.store import Store
from dmlbench.sweep.external_rows import (
    COLUMNS,
    RIGHT,
    StoredRow,
    find_row,
    join,
    lower,
    robust,
    source_facts,
    values_of,
)
from dmlbench.sweep.plan import measure_version
from dmlbench.sweep.requests import whole_number
from dmlbench.sweep.session import Session, Stopwatch, open_session, store_success
from dmlbench.sweep.tasks import Weights, new_cell
from dmlbench.sweep.weights import checkpoint_weights
from dmlbench.zoo.registry import card_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmlbench.evaluation.evaluator import Evaluation
    from dmlbench.sweep.external_rows import Values


@dataclass(frozen=True)
class Verified:
    """The result of checking images from outside.

    Attributes:
        by: who handed them in.
        sha256: of the file.
        dataset, label: name of the data set, and the model, of the row.
        suite: of the row.
        eps: radius of the ball that they lie in.
        images: number of images of queries of the row.
        others: number of images of test images that the row does not attack; they do not count.
        right: share of those queries whose top-1 is right, in percent.
        broken: queries that they break and the row's worst case did not.
        before, after: the row's Robust R@1 without and with them.
        stored: true if they are part of the row now, because they break more.
    """

    by: Contributor
    sha256: str
    dataset: str
    label: str
    suite: str
    eps: float
    images: int
    others: int
    right: float
    broken: int
    before: Estimate
    after: Estimate
    stored: bool


def verify_file(
    path: Path,
    row: str,
    by: Contributor,
    results: Path,
    *,
    where: Sequence[str] = (),
    dataset: str | Dataset | None = None,
    checkpoint: Path | None = None,
    model: str | None = None,
    allow_code: bool = False,
    **options: Any,
) -> Verified:
    """Verify the images in a file against a stored row, and bring its CSVs up to date.

    Args:
        path: the .npz file.
        row: the model as ``compare`` takes it.
        by: who handed the images in.
        results: the results folder of the row.
        where: conditions ``column=text`` that tell the rows of the model apart.
        dataset: spec of the data set; None: as the row has it.
        checkpoint: file of the weights; None: those in ``results``.
        model: spec of their network; None: as their manifest has it, or the data set.
        allow_code: run the code of a data set that the row names, or of a network in a manifest.
        options: others of ``sweep.session.open_session``; precision and draws are the row's.

    Raises:
        UserError: the row, its weights or its data are not there, or the file is not one of
            adversarial images of it.
    """
    by.check()
    store = Store(results)
    chosen = find_row(store, row, where)
    about = chosen.worst[0].about
    if dataset is None and not allow_code:
        spec.refuse_reference(about.dataset, DATASETS, f"the row of {about.label}")
    if not isinstance(dataset, Dataset):
        dataset = spec.parse(dataset or about.dataset, DATASETS)
    options |= {"precision": about.precision, "eot": whole_number(about.eot) or 1}
    with open_session(dataset, results, **options) as session:
        weights = row_weights(session, chosen, checkpoint, model, allow_code)
        try:
            found = verify(session, chosen, weights, path, by)
        except CellError as error:
            raise UserError(f"{path}: {error}") from None
        export(session.store)
    return found


def row_weights(
    session: Session,
    row: StoredRow,
    checkpoint: Path | None,
    model: str | None,
    allow_code: bool = False,
) -> Weights:
    """The weights of a row, from its results folder or from ``checkpoint``.

    Raises:
        UserError: they are not there, weights, network or data are not those of the row, or a
            manifest names code that is not allowed.
    """
    first = row.worst[0]
    facts = source_facts(session.store, first)
    path = checkpoint or session.store.model_folder(str(facts.get("training")))
    if checkpoint is None and not path.is_dir():
        known = card_of(str(facts["checkpoint"]))
        how = f"them with --zoo {known.name}" if known else "their file with --checkpoint"
        raise UserError(
            f"the weights of {first.about.label} are not in {session.store.root}: name {how}"
        )
    network = parse_model(model) if model else None
    weights = checkpoint_weights(
        session.dataset,
        session.digest,
        network,
        path,
        label=None,
        seed=first.about.seed,
        compute=session.compute,
        allow_code=allow_code,
    )
    for key, what, flag in (
        ("data", "data set", "--dataset"),
        ("checkpoint", "checkpoint", "--checkpoint"),
        ("model", "network", "--model"),
    ):
        if weights.facts[key] != facts[key]:
            raise UserError(
                f"the {what} is not the one that {first.about.label} was measured with "
                f"({first.about.dataset}, {first.about.model}, checkpoint "
                f"{str(facts['checkpoint'])[:12]}): name it with {flag}"
            )
    return weights


def verify(
    session: Session, row: StoredRow, weights: Weights, path: Path, by: Contributor
) -> Verified:
    """Verify the images in a file against a row, and make them part of it if they break more.

    Raises:
        UserError: the file is not one of adversarial images of this row; the message names the
            query.
    """
    from dmlbench.evaluation.measurement import Measurement
    from dmlbench.sweep.worker import Worker

    watch, data = Stopwatch(), session.data
    counted = ~np.isnan(values_of(session.store, row.worst[0], WORST))
    shape = (data.channels, data.size, data.size)
    with (
        Worker(session) as worker,
        adversarial.reader(path, len(data.test), shape) as file,
    ):
        outcomes, radius = _measure(worker.evaluation(weights), file, counted, row.eps, path)
        sha256, all_images = file.sha256, len(file.index)
    before = [robust(session.store, cell, row.external) for cell in row.worst]
    after = [lower(values, outcomes[RIGHT]) for values in before]
    cell = _cell(session.store, row, by, sha256)
    better = any((b > a).any() for b, a in zip(before, after, strict=True))
    if better:
        metrics = {column.name: bootstrap_mean(outcomes[column.name]) for column in COLUMNS}
        findings = {"radius": radius, "images": all_images}
        store_success(session, cell, Measurement(metrics, findings, outcomes), watch)
        join(session.store)
    about, images = cell.about, int((~np.isnan(outcomes[RIGHT])).sum())
    return Verified(
        by=by,
        sha256=sha256,
        dataset=session.dataset.card.name,
        label=about.label,
        suite=about.suite,
        eps=row.eps,
        images=images,
        others=all_images - images,
        right=float(np.nanmean(outcomes[RIGHT])),
        broken=int((before[0] > after[0]).sum()),
        before=bootstrap_mean(before[0]),
        after=bootstrap_mean(after[0]),
        stored=better or any(one.id == cell.id for one in row.external),
    )


def _measure(
    evaluation: Evaluation,
    file: adversarial.AdversarialImages,
    counted: npt.NDArray[np.bool_],
    eps: float,
    path: Path,
) -> tuple[dict[str, Values], float]:
    """Outcomes of the images, (N,) each, NaN where there is none, and the largest change.

    Args:
        counted: (N,) true for the queries of the row.
    """
    outcomes = {column.name: np.full(len(counted), np.nan) for column in COLUMNS}
    radius = 0.0
    with evaluation.reporter.task(f"verifying {path.name}", len(file.index)) as task:
        for index, pixels in file.batches(evaluation.rows):
            rows = torch.from_numpy(index).to(evaluation.device)
            images = torch.from_numpy(pixels).to(evaluation.device)
            moved = (images - evaluation.images(rows)).abs().flatten(1).amax(1).cpu().numpy()
            if (moved > eps + RADIUS_TOLERANCE).any():
                place = int(np.flatnonzero(moved > eps + RADIUS_TOLERANCE)[0])
                raise UserError(
                    f"{path}: the image of query {index[place]} is {255 * moved[place]:.4g}/255 "
                    f"from the clean one in a pixel; the ball of this row has eps "
                    f"{255 * eps:.4g}/255"
                )
            radius = max(radius, float(moved.max()))
            keep = counted[index]
            if keep.any():
                there = torch.from_numpy(keep).to(evaluation.device)
                found = evaluation.moved(COLUMNS, images[there], rows[there])
                for name, values in found.items():
                    outcomes[name][index[keep]] = values.double().cpu().numpy()
            task.advance(len(index), "")
    if np.isnan(outcomes[RIGHT]).all():
        raise UserError(f"{path} has no image of a query that this row attacks")
    return outcomes, radius


def _cell(store: Store, row: StoredRow, by: Contributor, sha256: str) -> PlannedCell:
    """The cell of a file, without its numbers."""
    first = row.worst[0]
    about = structs.replace(
        first.about,
        attack=f"{KIND}:file={sha256[:12]}",
        attack_resolved=by.spelt(f"{255 * row.eps:.6g}/255", sha256),
    )
    facts = {
        "kind": KIND,
        **source_facts(store, first),
        "measure_version": measure_version(about),
        "precision": about.precision,
        "suite": about.suite,
        "queries": about.queries,
        "eps": row.eps,
        "file": sha256,
        "by": by.by,
        "link": by.link,
    }
    return new_cell(facts, about, {c.name: ColumnInfo(c.unit, c.better) for c in COLUMNS})
