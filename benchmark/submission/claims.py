"""The plan that stored cells claim to follow, built anew by today's code, and how it differs.

A cell says in words what was measured (``about``), and in ``facts`` what its identity is the hash
of. Neither is believed: the weights, the training and each attack are planned again, and a cell
must be the planned one to the last key. So an easier attack cannot carry the name of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from msgspec import structs

from dmlbench.attacks.base import ATTACKS, Attack
from dmlbench.common.errors import UserError
from dmlbench.common.text import message_of
from dmlbench.compute.device import Compute
from dmlbench.core import spec
from dmlbench.core.naming import split_attack_seed
from dmlbench.core.protocol import SUITE_ATTACKS, SUITES, Recipe
from dmlbench.core.reference import source_facts
from dmlbench.core.spec import refuse_reference
from dmlbench.datasets.base import DATASETS, Dataset
from dmlbench.defenses.base import DEFENSES
from dmlbench.models.base import MODELS, canonical_model, parse_model
from dmlbench.storage.cell import About, Cell, PlannedCell
from dmlbench.storage.checkpoint import Manifest, read_manifest
from dmlbench.storage.store import Store
from dmlbench.sweep import plan
from dmlbench.sweep.requests import whole_number
from dmlbench.sweep.tasks import CellTask, Combine, PlannedAttack, Weights
from dmlbench.sweep.weights import checkpoint_weights, trained_weights
from dmlbench.training.job import Training

OUTSIDE = "defense_source"  # the digest of a defense's code, in a training's facts
ATTACKED = ("suite", "queries", "attack", "attack_resolved")  # of ``About``: what an attack adds


@dataclass(frozen=True)
class Claim:
    """The claim of the cells of one model, as today's code plans it.

    Attributes:
        dataset: the data set.
        weights: the weights, checked against their manifest if there is one.
        training: the training that the manifest tells of; None: unknown, or other than today's.
        from_outside: the defense is code that is not part of dmlbench; ``training`` is None then.
        tasks: identity of a cell -> its task.
    """

    dataset: Dataset
    weights: Weights
    training: Training | None
    from_outside: bool
    tasks: dict[str, CellTask]


def claim(
    dataset: Dataset,
    digest: str,
    cells: Sequence[Cell],
    path: Path,
    allow_code: bool = False,
    spelt: str = "",
) -> Claim:
    """Plan anew what stored cells of one model claim; nothing in them is believed.

    Args:
        dataset: the data set.
        digest: of its content.
        cells: of one checkpoint, one precision and one seed.
        path: the model's folder, or its file of weights.
        allow_code: run code that the manifest or a cell names.
        spelt: spec of the data set in the cells; empty: that of ``dataset``.

    Raises:
        UserError: a spec in them cannot be read, names code, or the weights are damaged.
    """
    if not allow_code:
        refuse_references(cells, path)
    try:
        return _claim(dataset, digest, cells, path, allow_code, spelt or spec.shown(dataset))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        said = message_of(error)[:200]
        raise UserError(f"cells or manifest have a value that cannot be read: {said}") from None


def _claim(
    dataset: Dataset,
    digest: str,
    cells: Sequence[Cell],
    path: Path,
    allow_code: bool,
    spelt: str,
) -> Claim:
    first = cells[0]
    manifest = read_manifest(path) if path.is_dir() else None
    seeds = [cell.facts["seed"] for cell in cells if "seed" in cell.facts]
    about = first.about
    given = None if manifest and about.label == manifest.label else about.label
    network = None if manifest else parse_model(about.model)
    compute = Compute(precision=about.precision, eot=whole_number(about.eot) or 1)
    weights = checkpoint_weights(
        dataset,
        digest,
        network,
        path,
        label=given,
        seed=seeds[0] if seeds else about.seed,
        compute=compute,
        allow_code=allow_code,
        training_seed=None if manifest else about.seed,
    )
    training = manifest and training_of(manifest, dataset, digest)
    if training and manifest and given is None:
        store = Store(path.parent.parent)
        row = trained_weights(training, manifest, store, compute)
        weights = replace(weights, about=structs.replace(row.about, seed=weights.about.seed))
    weights = replace(weights, about=structs.replace(weights.about, dataset=spelt))
    tasks: dict[str, CellTask] = {}
    for queries in _queries(cells):
        planned = _attacks(dataset, cells, queries)
        tasks |= {task.cell.id: task for task in plan.cells(weights, planned, dataset.benign)}
    from_outside = manifest is not None and OUTSIDE in manifest.training
    return Claim(dataset, weights, training or None, from_outside, tasks)


def refuse_references(cells: Iterable[Cell], path: Path) -> None:
    """UserError if a spec in the cells or in the manifest names code, which would be run."""
    for cell in cells:
        where = f"cell {cell.id}"
        refuse_reference(cell.about.attack_resolved, ATTACKS, where)
        refuse_reference(cell.about.dataset, DATASETS, where)
        refuse_reference(cell.about.model, MODELS, where)
    manifest = read_manifest(path) if path.is_dir() else None
    if manifest is not None:
        refuse_reference(manifest.model, MODELS, "the manifest")
        refuse_reference(manifest.resolved, DEFENSES, "the manifest")


def training_of(manifest: Manifest, dataset: Dataset, digest: str) -> Training | None:
    """The training that a manifest tells of, planned anew; None if today's code plans another.

    None too if the defense is code from outside: whether it is known must not decide, as it is on
    the machine that packs a bundle, and seldom on the one that verifies it.
    """
    raw = manifest.training
    if OUTSIDE in raw:
        return None
    try:
        defense = spec.parse(manifest.resolved, DEFENSES)
        network = parse_model(manifest.model)
        texts = {str(key): str(value) for key, value in dict(raw["recipe"]).items()}
        recipe = spec.build(Recipe, texts, "recipe")
        (training,) = plan.plan(dataset, digest, network, [defense], [raw["seed"]], recipe)
    except (UserError, KeyError, TypeError, ValueError):
        return None
    return training if training.facts == raw else None


def _queries(cells: Iterable[Cell]) -> list[int | None]:
    """Each number of queries that the cells were attacked with; None: all."""
    found = {cell.about.queries for cell in cells if cell.about.suite}
    return [whole_number(text) for text in sorted(found)] or [None]


def _attacks(dataset: Dataset, cells: Iterable[Cell], queries: int | None) -> list[PlannedAttack]:
    """The attacks that the cells name, with every column that they may have."""
    number = "" if queries is None else str(queries)
    wanted: list[Attack] = []
    for cell in sorted(cells, key=_in_suite):
        about = cell.about
        if about.attack_resolved and about.queries == number and cell.facts.get("kind") == "attack":
            with suppress(UserError):  # its cell is then none of the planned ones
                attack = spec.parse(about.attack_resolved, ATTACKS)
                attack = attack.in_suite(about.suite)
                attack.resolve(dataset.protocol.threat)
                wanted.append(attack)
    return plan.planned_attacks(wanted, dataset.protocol.threat, queries, recalls=True)


def _in_suite(cell: Cell) -> tuple[int, int, str]:
    """Sort key: the order in which a suite runs its attacks, others after them.

    Scores are drawn from cells in the order of a run, and their identity has that order.
    """
    suite, (name, _) = cell.about.suite, split_attack_seed(cell.about.attack)
    known = SUITE_ATTACKS.get(suite, ())
    number = SUITES.index(suite) if suite in SUITES else len(SUITES)
    return number, known.index(name) if name in known else len(known), name


def problem(cell: Cell, claimed: Claim) -> str:
    """The reason why a cell is not the planned one; empty if it is."""
    name = f"{cell.about.attack or 'clean images'} (cell {cell.id})"
    task = claimed.tasks.get(cell.id)
    if task is None:
        described = cell.about.attack_resolved or cell.about.attack or "clean images"
        if cell.about.attack_resolved:
            try:
                spec.parse(described, ATTACKS)
            except UserError as error:
                if described.partition(":")[0] in ATTACKS.names():
                    return f"{name}: its attack cannot be read ({error})"
                return f"{name}: an attack of a file or a plugin is not known here ({error})"
        return (
            f"{name}: its facts are not those of its description: today's code gives "
            f"{described!r} another identity"
        )
    if (difference := _difference(cell.about, task.cell.about)) or cell.facts != task.cell.facts:
        return f"{name}: it describes itself otherwise than it is ({difference or 'facts'})"
    plain = _required(task)
    if not plain <= cell.columns.keys() <= task.cell.columns.keys():
        return f"{name}: it has the columns {', '.join(cell.columns)}"
    if any(cell.columns[key] != task.cell.columns[key] for key in cell.columns):
        return f"{name}: a column has another unit or direction than the attack's"
    return ""


def _required(task: CellTask) -> set[str]:
    """The columns that a cell has in any case: those of moved queries only if asked for."""
    if isinstance(task, Combine) or task.attack is None:
        return set(task.cell.columns)
    return {column.name for column in task.attack.headings()}


def _difference(one: About, other: About) -> str:
    fields = (
        name for name in About.__struct_fields__ if getattr(one, name) != getattr(other, name)
    )
    return "; ".join(
        f"{name} is {getattr(one, name)!r}, planned {getattr(other, name)!r}" for name in fields
    )


def changes(claimed: Claim, cells: Sequence[PlannedCell]) -> tuple[str, ...]:
    """The differences from the published recipe and suites, a sentence each; empty: none.

    The network, the recipe, the radius of the training's adversary, the images and the suites are
    the data set's card's. A defense may have its own keys: they are what is measured. More attacks
    beside a whole suite are no change, nor is a smaller number of queries, which the row says.
    """
    card, found = claimed.dataset.protocol, []
    if spec.canonical(claimed.dataset) != card.name or source_facts(claimed.dataset, "source"):
        found.append("the data set has keys, or is code from outside")
    training, about = claimed.training, claimed.weights.about
    if claimed.from_outside:
        found.append("the defense is code from outside")
        if about.recipe:
            found.append(f"the recipe has {about.recipe}")
        if about.model != card.model:
            found.append(f"the network is {about.model}, not {card.model}")
    elif training is None:
        found.append("the training is unknown, or not one that this version would do")
    else:
        if training.recipe_changes:
            found.append(f"the recipe has {training.recipe_changes}")
        if canonical_model(training.model) != canonical_model(parse_model(card.model)):
            found.append(f"the network is {canonical_model(training.model)}, not {card.model}")
        eps = getattr(training.defense, "eps", None)
        if eps not in (None, card.training_threat.eps):
            found.append(f"the training has eps {255 * eps:g}/255")
        if about.label != training.defense.label:
            found.append(f"the row is called {about.label}")
    if about.precision != "fp32" or about.eot:
        found.append(f"it is measured in {about.precision}, with {about.eot or 1} draws")
    if claimed.weights.seed != about.seed:
        found.append(f"the attacks have seed {claimed.weights.seed}, the training {about.seed}")
    rows = {(cell.about.suite, cell.about.queries) for cell in cells if cell.about.suite}
    for suite, queries in sorted(rows):
        names = {
            split_attack_seed(cell.about.attack)[0]
            for cell in cells
            if (cell.about.suite, cell.about.queries) == (suite, queries)
        }
        if missing := [name for name in SUITE_ATTACKS[suite] if name not in names]:
            found.append(f"suite {suite} lacks {', '.join(missing)} as it is published")
    if not rows:
        found.append("no suite was run")
    return tuple(found)
