"""``dmlbench submit``: pack the rows of a model into a bundle that anyone can verify."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec import structs

from dmlbench.analysis.csv_files import export
from dmlbench.analysis.external import KIND, Contributor
from dmlbench.analysis.lookup import as_stored, measured_cells
from dmlbench.analysis.records import MODEL, ROW
from dmlbench.analysis.where import DIGESTS, choices, condition
from dmlbench.common.download import check_address
from dmlbench.common.errors import UserError
from dmlbench.common.files import read_file, write_atomically
from dmlbench.compute.provenance import provenance
from dmlbench.core import spec
from dmlbench.core.naming import ATTACK_SEED, split_attack_seed
from dmlbench.datasets.base import DATASETS, Dataset
from dmlbench.storage.cell import Cell
from dmlbench.storage.checkpoint import MANIFEST, WEIGHTS, stored_weights
from dmlbench.storage.store import Store
from dmlbench.submission import bundle as bundles
from dmlbench.submission.bundle import Bundle
from dmlbench.submission.claims import Claim, changes, claim, problem, refuse_references
from dmlbench.sweep.session import open_session
from dmlbench.zoo.fetch import local_or_zoo
from dmlbench.zoo.registry import card_of


@dataclass(frozen=True)
class Packed:
    """A bundle that was written.

    Attributes:
        record: its record.
        left_out: what was left out and why, a line each.
        runs_code: a network or an attack in it is code, which is run where it is verified.
    """

    record: Bundle
    left_out: list[str]
    runs_code: bool


def submit(
    name: str,
    results: Path,
    path: Path,
    *,
    by: str,
    link: str = "",
    where: Sequence[str] = (),
    dataset: str | Dataset | None = None,
    checkpoint: Path | None = None,
    weights_url: str = "",
    data_root: Path | None = None,
    cache: Path | None = None,
) -> Packed:
    """Pack the rows of a model.

    Args:
        name: the model as ``compare`` takes it: its defense, label or checkpoint.
        results: the results folder that holds its cells.
        path: the bundle that is written.
        by: name of who hands it in.
        link: address of a paper or of code.
        where: conditions ``column=text`` that choose among the rows of the model.
        dataset: the data set; None: as the rows have it.
        checkpoint: the weights; None: those in ``results``, or in the zoo.
        weights_url: https address of the weights, which are left out of the bundle then.
        data_root, cache: those of ``open_session``.

    Raises:
        UserError: there are no such rows, they are several models, the weights are not there, or
            their address is none.
    """
    Contributor(by, link).check()
    if weights_url:
        check_address(weights_url)
        if not weights_url.startswith("https://"):
            raise UserError(f"--weights-url must begin with https://, got {weights_url!r}")
    store = Store(results)
    cells = _chosen(store, name, where)
    first = cells[0]
    if not isinstance(dataset, Dataset):
        dataset = spec.parse(dataset or first.about.dataset, DATASETS)
    home = _weights_of(store, first, checkpoint)
    with (
        tempfile.TemporaryDirectory(prefix="dmlbench-") as empty,
        open_session(dataset, Path(empty), data_root=data_root, cache=cache) as session,
    ):
        if session.digest != first.facts["data"]:
            raise UserError(f"these are not the images of {first.about.dataset}: name --dataset")
        folder, weights = session.store, _copy_weights(home, first, Path(empty))
        claimed = claim(dataset, session.digest, cells, weights, allow_code=True)
        kept, left_out = _sound(cells, claimed)
        if not kept:
            raise UserError(f"no cell of {name!r} can be handed in: {left_out[0]}")
        for cell in kept:
            folder.put(cell, store.outcomes(cell.id))
        export(folder)
        changed = changes(claimed, kept)
        runs_code = _names_code(kept, weights)
        if weights_url:
            (weights / WEIGHTS).unlink()
        files = [one.relative_to(empty).as_posix() for one in Path(empty).rglob("*")]
        packed = [one for one in files if one.startswith(("cells/", "models/")) and "." in one] + [
            bundles.ROWS
        ]
        made = Bundle(
            schema=bundles.SCHEMA,
            by=by,
            link=link,
            protocol="open" if changed else "closed",
            changes=changed,
            dataset=spec.shown(dataset),
            data=first.facts["data"],
            checkpoint=first.facts["checkpoint"],
            weights=weights_url,
            cells=tuple(cell.id for cell in kept),
            files=bundles.digests(Path(empty), packed),
            made=provenance(None),
        )
        bundles.write(path, bundles.checked(made), Path(empty))
    return Packed(made, left_out, runs_code)


def _chosen(store: Store, name: str, where: Sequence[str]) -> list[Cell]:
    """The cells of one model, whole and measured; images from outside are not among them."""
    name = as_stored(name)
    conditions = [condition(text, (*ROW, *DIGESTS, ATTACK_SEED)) for text in where]

    def wanted(cell: Cell) -> bool:
        if "external_files" in cell.facts or cell.facts["kind"] == KIND:
            return False
        if "data" not in cell.facts:
            return False  # a score of an early version, which no run draws so any more
        return all(
            one.meets(_value(cell, one.key))
            or (one.key in ("suite", "queries", ATTACK_SEED) and not cell.about.suite)
            for one in conditions
        )

    found = measured_cells(name, store, wanted, where)
    if not any(all(one.meets(_value(cell, one.key)) for one in conditions) for cell in found):
        raise UserError(
            f"nothing but clean images was measured of {name!r} with {' with '.join(where)} in "
            f"{store.root}"
        )
    kinds = {
        (c.facts["checkpoint"], c.facts["data"], c.about.precision, c.about.eot) for c in found
    }
    seeds = {cell.facts["seed"] for cell in found if "seed" in cell.facts}
    if len(kinds) > 1:
        keys = (*MODEL, *DIGESTS)
        rows = [{key: _value(cell, key) for key in keys} for cell in found]
        raise UserError(
            f"{name!r} is {len(kinds)} models in {store.root} "
            f"({choices(rows, keys)}): a bundle has one; choose with --where"
        )
    if len(seeds) > 1:
        raise UserError(
            f"{name!r} was attacked with the seeds {', '.join(map(str, sorted(seeds)))} in "
            f"{store.root}: a bundle has one; choose with --where {ATTACK_SEED}={min(seeds)}"
        )
    return found


def _sound(cells: Iterable[Cell], claimed: Claim) -> tuple[list[Cell], list[str]]:
    """The cells that can be handed in, and what is wrong with the others."""
    kept, left_out = [], []
    for cell in cells:
        planned = claimed.tasks.get(cell.id)
        if planned is not None:  # a row of 'attack' may lack what the manifest tells
            cell = structs.replace(cell, about=planned.cell.about)
        if wrong := problem(cell, claimed):
            left_out.append(wrong)
        else:
            kept.append(cell)
    return kept, left_out


def _names_code(cells: Iterable[Cell], weights: Path) -> bool:
    """True if a spec in the cells or in the manifest names code, which ``verify`` refuses then."""
    try:
        refuse_references(cells, weights)
    except UserError:
        return True
    return False


def _value(cell: Cell, key: str) -> str:
    """The text of a cell that a condition of ``--where`` is compared with."""
    if key == ATTACK_SEED:
        return _attack_seed(cell)
    if key in DIGESTS:
        return str(cell.facts.get(key.removesuffix("_sha256"), ""))
    return str(getattr(cell.about, key))


def _attack_seed(cell: Cell) -> str:
    """The seed of an attack, or of those that a score is drawn from."""
    named = split_attack_seed(cell.about.attack)[1]
    return str(cell.facts.get("seed", cell.about.seed if named is None else named))


def _weights_of(store: Store, cell: Cell, checkpoint: Path | None) -> Path:
    """The folder or file of the weights that a cell was measured with."""
    # a cell without a training was measured from a file alone; the zoo's has a manifest beside it
    known = card_of(cell.facts["checkpoint"]) if "training" in cell.facts else None
    place = checkpoint or store.model_folder(str(cell.facts.get("training")))
    if checkpoint is None and not place.is_dir() and known is not None:
        place = local_or_zoo(known.name)
    if checkpoint is None and "architecture" in cell.facts.get("model", {}):
        raise UserError(
            f"{cell.about.label} was measured as it was built, and a bundle has a file of weights: "
            f"{_saved(cell)}"
        )
    if checkpoint is not None and not checkpoint.exists():
        raise UserError(f"--checkpoint {checkpoint} does not exist")
    if not place.exists():
        raise UserError(
            f"the weights of {cell.about.label} are not in {store.root}: name them with "
            "--checkpoint"
        )
    return place


def _saved(cell: Cell) -> str:
    """The way to weights that a bundle takes, and to rows of theirs: a row holds their SHA-256."""
    return (
        "write safetensors.torch.save_model(net, 'w.safetensors') in Python, and measure that "
        f"file with 'dmlbench attack --checkpoint w.safetensors --model {cell.about.model}'"
    )


def _copy_weights(home: Path, cell: Cell, root: Path) -> Path:
    """Copy weights and manifest to where a bundle has them; returns the model's folder or file."""
    weights = stored_weights(home)
    if weights.sha256 != cell.facts["checkpoint"]:
        raise UserError(
            f"{home} holds other weights than {cell.about.label} was measured with: name those "
            "with --checkpoint"
        )
    if weights.path.suffix != ".safetensors":
        raise UserError(
            f"{weights.path} is no safetensors file, and a bundle takes no other: load it into "
            f"the network, {_saved(cell)}"
        )
    folder = root / "models" / str(cell.facts.get("training", weights.sha256[:16]))
    folder.mkdir(parents=True)
    shutil.copyfile(weights.path, folder / WEIGHTS)
    if weights.manifest is None:
        return folder / WEIGHTS
    write_atomically(folder / MANIFEST, read_file(weights.path.parent / MANIFEST))
    return folder
