"""``dmlbench verify``: is a bundle what it says? Its files, its plan, its numbers, a new sample.

1. The files are those that the record names, by SHA-256 (``bundle``).
2. Every cell is the one that today's code plans for these weights and this attack (``claims``).
3. Every number follows from the outcomes of the queries (``outcomes``).
4. Clean images are measured again, all of them, and each attack on a random sample of the row's
   queries, which the seed of the verifier draws. The targets of a query follow from its position
   and the seed of the row alone, so its outcome is the same in a sample. Where a sample speaks
   against the row, all queries of that attack are measured again, and decide (``sample``).

A bundle cannot show that the weights come from the training that the manifest tells of:
``dmlbench reproduce`` trains again.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmlbench.analysis.csv_files import read_tidy, write
from dmlbench.analysis.records import TIDY_COLUMNS, tidy
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
from dmlbench.submission.agreement import Agreement, Refused
from dmlbench.submission.bundle import Bundle
from dmlbench.submission.claims import Claim, changes, claim, problem
from dmlbench.submission.outcomes import read_outcomes, wrong_number
from dmlbench.submission.sample import measured_again
from dmlbench.sweep.requests import whole_number
from dmlbench.sweep.session import Session, open_session
from dmlbench.zoo.fetch import fetch_weights

if TYPE_CHECKING:
    from dmlbench.submission.outcomes import Outcomes

QUERIES = 100


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
        given = dataset is not None
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
                claimed = _planned(session, record, cells, home, allow_code, given)
                outcomes = _drawn(session, cells, claimed)
                if rows != _exported(store):
                    raise Refused(f"{bundles.ROWS} is not the export of the cells")
                asked = partial(_asked, images=len(session.data.test))
                found = measured_again(session, cells, claimed, outcomes, asked, queries, seed)
                verdict.numbers, verdict.reasons = found
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
        fetch_weights(record.weights, record.checkpoint, home, home, bundles.MOST_WEIGHTS)
    return home if read_manifest(home) is not None else home / WEIGHTS


def _planned(
    session: Session,
    record: Bundle,
    cells: Sequence[Cell],
    home: Path,
    allow_code: bool,
    given: bool,
) -> Claim:
    """The plan that the cells claim; each must be a part of it, and the protocol as it is said.

    Where the verifier has given the data set, the images may lie elsewhere than the record says.
    """
    same_name = record.dataset.partition(":")[0] == session.dataset.card.name
    spelt = record.dataset if given and same_name else ""
    claimed = claim(session.dataset, session.digest, cells, home, allow_code, spelt)
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
    exported = store.root / "exported.csv"
    write(exported, TIDY_COLUMNS, tidy(store.cells()))
    return read_tidy(exported)
