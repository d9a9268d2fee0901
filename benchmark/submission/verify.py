"""``dmlbench verify``: is a bundle what it says? Its files, its plan, its numbers, a new sample.

1. The files are those that the record names, by SHA-256 (``bundle``).
2. Every cell is the one that today's code plans for these weights and this attack (``claims``).
3. Every number follows from the outcomes of the queries (``outcomes``).
4. Clean images are measured again, all of them, and each attack on a random sample of the row's
   queries, which the seed of the verifier draws. The targets of a query follow from its position
   and the seed of the row alone, so its outcome is the same in a sample. Where the means differ by
   more than the tolerance, all queries of that attack are measured again, and these decide
   (``agreement``).

A bundle cannot show that the weights come from the training that the manifest tells of:
``dmlbench reproduce`` trains again.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmlbench.analysis.csv_files import export, read_tidy
from dmlbench.common.errors import CellError, DamagedError, UserError
from dmlbench.common.files import read_file
from dmlbench.common.lazy import np
from dmlbench.core import spec
from dmlbench.core.spec import refuse_reference
from dmlbench.datasets.base import DATASETS, Dataset
from dmlbench.storage.cell import Cell
from dmlbench.storage.checkpoint import WEIGHTS, read_manifest
from dmlbench.storage.store import Store
from dmlbench.submission import bundle as bundles
from dmlbench.submission.agreement import Agreement, agreement, unexplained
from dmlbench.submission.bundle import Bundle
from dmlbench.submission.claims import Claim, changes, claim, problem, whole_number
from dmlbench.submission.outcomes import read_outcomes, task_is_attack, wrong_number
from dmlbench.sweep.session import Session, open_session
from dmlbench.sweep.tasks import Combine, Measure
from dmlbench.zoo.fetch import fetch_weights

if TYPE_CHECKING:
    from dmlbench.evaluation.evaluator import Evaluation
    from dmlbench.evaluation.measurement import Measurement
    from dmlbench.submission.outcomes import Outcomes

QUERIES = 100
NMI_SLACK = 1.0  # points beside the range of the new starts of k-means
SIGNS = {"mean_cosine": 0.01, "effective_rank": 0.05}  # of a collapse; relative difference allowed


class Refused(Exception):  # noqa: N818 - it is a verdict, not a fault
    """The bundle is not what it says; the message says why."""


@dataclass
class Verdict:
    """The outcome of a verification.

    Attributes:
        bundle: its record.
        label: the model.
        seed: the seed that drew the sample.
        queries: size of the sample.
        numbers: each number that was measured again.
        reasons: why the bundle is refused; empty: it is accepted.
    """

    bundle: Bundle
    label: str
    seed: int
    queries: int
    numbers: list[Agreement] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def accepted(self) -> bool:
        """True if nothing speaks against it."""
        return not self.reasons


def verify(
    path: Path,
    *,
    queries: int = QUERIES,
    seed: int | None = None,
    dataset: str | Dataset | None = None,
    allow_code: bool = False,
    **options: Any,
) -> Verdict:
    """Verify a bundle that anyone may have made.

    Args:
        path: the file.
        queries: number of queries of each attack that are measured again.
        seed: draws them; None: a new one, which nobody could know before.
        dataset: spec of the data set; None: the bundle's.
        allow_code: run code that the manifest or a cell names.
        options: others of ``sweep.session.open_session``.

    Raises:
        UserError: the file is no bundle, or the data are not there.
    """
    with tempfile.TemporaryDirectory(prefix="dmlbench-") as empty:
        folder = Path(empty)
        record = bundles.unpack(path, folder)
        if not isinstance(dataset, Dataset):
            if dataset is None and not allow_code:
                refuse_reference(record.dataset, DATASETS, str(path))
            dataset = spec.parse(dataset or record.dataset, DATASETS)
        seed = secrets.randbelow(1 << 32) if seed is None else seed
        verdict = Verdict(record, "", seed, queries)
        try:
            store = Store(folder)
            cells = _cells(store, record)
            verdict.label = cells[0].about.label
            rows = read_tidy(folder / bundles.ROWS)
            home = _weights(folder, record)
            with open_session(dataset, folder, **options) as session:
                if session.digest != record.data:
                    raise UserError(
                        f"the images are not those of the bundle ({record.dataset}): name the data "
                        "set with --dataset"
                    )
                claimed = _planned(session, record, cells, home, allow_code)
                outcomes = _drawn(session, cells, claimed)
                if rows != _exported(store):
                    raise Refused(f"{bundles.ROWS} is not the export of the cells")
                _measure(session, verdict, cells, claimed, outcomes)
        except (Refused, CellError) as refusal:  # the second where it cannot be measured at all
            verdict.reasons.append(str(refusal))
        except DamagedError as error:
            verdict.reasons.append(error.reason.replace(f"{folder}/", ""))
    return verdict


def _cells(store: Store, record: Bundle) -> list[Cell]:
    """The cells, each of which succeeded, in the order of tables."""
    found, damaged = store.read()
    if damaged:
        raise Refused(f"cells/{damaged[0].name} is damaged, or is not the cell that it names")
    if {cell.id for cell in found} != set(record.cells) or not found:
        raise Refused("its cells are not those of its record")
    for cell in found:
        if not cell.ok or cell.outcomes is None:
            raise Refused(f"cell {cell.id} failed, or has no outcomes")
        for key, wanted in (("data", record.data), ("checkpoint", record.checkpoint)):
            if cell.facts.get(key) != wanted:
                raise Refused(f"cell {cell.id} has another {key} than the record")
        if cell.about.dataset != record.dataset:
            raise Refused(f"cell {cell.id} names another data set than the record")
    return sorted(found, key=lambda cell: cell.order)


def _weights(folder: Path, record: Bundle) -> Path:
    """The model's folder, or its file of weights, which are fetched if the record says where."""
    homes = list((folder / "models").glob("*")) or [folder / "models" / record.checkpoint[:16]]
    if len(homes) != 1:
        raise Refused("it has several models")
    (home,) = homes
    if not (home / WEIGHTS).is_file():
        if not record.weights:
            raise Refused("it has neither weights nor their address")
        fetch_weights(record.weights, record.checkpoint, home, home)
    return home if read_manifest(home) is not None else home / WEIGHTS


def _planned(
    session: Session, record: Bundle, cells: Sequence[Cell], home: Path, allow_code: bool
) -> Claim:
    """The plan that the cells claim; each must be a part of it, and the protocol as it is said."""
    claimed = claim(session.dataset, session.digest, cells, home, allow_code)
    if claimed.weights.facts["checkpoint"] != record.checkpoint:
        raise Refused("the weights are not those of the rows (SHA-256 differs)")
    for cell in cells:
        if wrong := problem(cell, claimed):
            raise Refused(wrong)
    found = changes(claimed, cells)
    if found != record.changes or (record.protocol == "closed") != (not found):
        said = "; ".join(found) or "nothing"
        raise Refused(f"it claims the {record.protocol} protocol, and changes of it are: {said}")
    return claimed


def _drawn(session: Session, cells: Sequence[Cell], claimed: Claim) -> dict[str, Outcomes]:
    """The outcomes of each cell; every number must follow from them."""
    images = len(session.data.test)
    found = {
        cell.id: read_outcomes(read_file(session.store.path(cell.id, "parquet")), cell, images)
        for cell in cells
    }
    for cell in cells:
        asked = np.zeros(images, dtype=bool)
        asked[_asked(cell, images)] = True
        task = claimed.tasks[cell.id]
        if wrong := wrong_number(cell, task, found[cell.id], found, asked):
            raise Refused(wrong)
    return found


def _asked(cell: Cell, images: int) -> list[int]:
    """Positions of the queries that the row attacks."""
    from dmlbench.evaluation.evaluator import drawn_queries

    return [int(i) for i in drawn_queries(images, whole_number(cell.about.queries))]


def _exported(store: Store) -> list[dict[str, Any]]:
    """The rows that the cells export."""
    tidy, _ = export(store)
    return read_tidy(tidy)


def _measure(
    session: Session,
    verdict: Verdict,
    cells: Sequence[Cell],
    claimed: Claim,
    outcomes: dict[str, Outcomes],
) -> None:
    """Measure clean images and a sample of each attack again, and hold the claim against them."""
    from dmlbench.sweep.worker import Worker

    worker = Worker(session)
    try:
        evaluation = worker.evaluation(claimed.weights)
    except (MemoryError, RuntimeError) as error:  # a network larger than this machine
        said = (str(error).strip().splitlines() or ["out of memory"])[0]
        raise UserError(f"the network of the bundle cannot be built here: {said}") from None
    generator = np.random.default_rng(verdict.seed)
    for cell in cells:
        task = claimed.tasks[cell.id]
        if isinstance(task, Combine):
            continue
        pool = _asked(cell, len(session.data.test))
        size = min(verdict.queries, len(pool))
        sample = sorted(int(i) for i in generator.choice(pool, size, replace=False))
        if not task_is_attack(task) or cell.about.eot:
            sample = pool  # what a randomised network draws depends on the batch
        found = _again(evaluation, task, sample)
        numbers = list(_held(cell, outcomes[cell.id], found, sample, len(sample) == len(pool)))
        doubtful = any(not one.close for one in numbers) or _missing_flags(cell, found)
        if doubtful and len(sample) < len(pool):
            session.reporter.say(f"{task.title}: the sample differs, so all queries are measured")
            found = _again(evaluation, task, pool)
            numbers = list(_held(cell, outcomes[cell.id], found, pool, True))
        verdict.numbers += numbers
        verdict.reasons += [_said(one) for one in numbers if one.refused]
        verdict.reasons += _other_findings(cell, found)
    worker.close()
    verdict.reasons += [
        f"{_said(one)}, and nothing else does, so it is not rounding"
        for one in unexplained(verdict.numbers)
        if not one.refused
    ]


def _said(one: Agreement) -> str:
    return (
        f"{one.attack or 'clean images'}: {one.metric} is claimed as {one.claimed:.4g} and "
        f"measured as {one.measured:.4g} on {one.n:,} queries; {one.differing:,} of them differ"
    )


def _again(evaluation: Evaluation, task: Measure, sample: Sequence[int]) -> Measurement:
    """Measure a cell anew, an attack on some of the queries."""
    if task.attack is None:
        return evaluation.benign()
    return evaluation.attack(
        task.attack, task.weights.seed, task.title, sample, recalls=task.recalls
    )


def _held(
    cell: Cell, claimed: Outcomes, found: Measurement, sample: Sequence[int], complete: bool
) -> Iterator[Agreement]:
    """Each column of outcomes against the new ones; those of clean images are not shown."""
    for column, values in claimed.items():
        name = column.removesuffix(" clean")
        if column not in found.outcomes or name not in cell.metrics:
            raise Refused(
                f"{cell.about.attack or 'clean images'}: it has no outcomes of {column!r}"
            )
        measured = np.asarray(found.outcomes[column], dtype=np.float64)
        one = agreement(
            values[list(sample)],
            measured[list(sample)],
            cell.metrics[name],
            complete,
            metric=column,
            attack=cell.about.attack,
            suite=cell.about.suite,
        )
        if name == column or one.refused or not one.close:
            yield one


def _missing_flags(cell: Cell, found: Measurement) -> list[str]:
    """Flags that the new measurement raises and the cell does not have; notes do not count."""
    raised = {flag["name"] for flag in found.findings.get("flags", ()) if not flag.get("note")}
    return sorted(raised - {flag.name for flag in cell.flags})


def _other_findings(cell: Cell, found: Measurement) -> list[str]:
    """Reasons to refuse that are no statistic of the outcomes."""
    name, again = cell.about.attack or "clean images", found.findings
    reasons = [f"{name}: it lacks the flag '{flag}'" for flag in _missing_flags(cell, found)]
    if cell.about.attack:
        return reasons
    nmi, own = cell.metrics["NMI"].value, found.metrics["NMI"]
    low, high = own.low or own.value, own.high or own.value
    if not low - NMI_SLACK <= nmi <= high + NMI_SLACK:
        reasons.append(f"{name}: NMI is claimed as {nmi:.4g}, measured as {own.value:.4g}")
    for sign, slack in SIGNS.items():
        claimed, measured = cell.findings.get(sign), again[sign]
        if claimed is None or abs(claimed - measured) > slack * max(1.0, abs(measured)):
            reasons.append(f"{name}: {sign} is claimed as {claimed}, measured as {measured:.4g}")
    return reasons
