"""The names of a user's own models and images in tables: one for all cells of the same.

A table shows one model for a name and a seed, the one that was measured last.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from msgspec import structs

from dmlbench.analysis.records import MODEL
from dmlbench.common.errors import UserError
from dmlbench.core import spec
from dmlbench.core.naming import with_plain_paths, without_paths
from dmlbench.models.base import Model
from dmlbench.models.module import ModuleModel
from dmlbench.storage.cell import Cell
from dmlbench.storage.weights import named
from dmlbench.sweep.session import Session

if TYPE_CHECKING:
    from dmlbench.sweep.tasks import Weights

NETWORK = ("checkpoint", "model")  # facts of a cell that say which network was measured
TRAINING = ("recipe", "resolved", "training_cost")  # unknown of a file without a manifest


def check_label(label: object) -> None:
    """UserError unless a label is absent (None), or a text with something to see."""
    if label is not None and not (isinstance(label, str) and label.strip()):
        raise UserError(f"label must be a text that can be seen, got {label!r}")


def in_its_row(
    session: Session,
    weights: Weights,
    label: str | None,
    training_seed: int | None = None,
    seed: int | None = None,
) -> Weights:
    """The weights under one name for all their cells: the given one, or that of stored cells.

    Stored cells under another name or training seed than the given ones are renamed. They are cells
    of the same weights in the same network: two networks may share their weights, as one that
    filters its images does with the plain one. A warning says so if cells of another network, of
    other weights or of other images are in the same row of tables.

    Args:
        session: whose results folder is looked through.
        weights: under the label that the user gave, or that of their file or class.
        label: the one that the user gave, if any.
        training_seed: the one that the user gave, if any; None: that of stored cells.
        seed: that of the attacks, if the user gave one; None: the training seed.

    Raises:
        UserError: dmlbench trained them, and stored cells have another label than the user gave.
    """
    stored = session.store.cells()
    alike = [c for c in stored if all(c.facts.get(k) == weights.facts[k] for k in NETWORK)]
    if alike:
        _warn_of_incomparable(weights.model)
    seeds = {cell.about.seed for cell in _of_training(alike, weights)}
    if training_seed is None and len(seeds) == 1:
        (known,) = seeds
        about = structs.replace(weights.about, seed=known)
        weights = replace(weights, about=about, seed=known if seed is None else seed)
    others = sorted({cell.about.label for cell in alike} - {label})
    if label is None:
        weights = _as_stored(session, weights, alike)
    elif weights.about.resolved and others:
        raise UserError(
            f"label {label!r}: this model, which dmlbench trained, is called {others[0]!r} in "
            f"{session.store.root}; leave the label out, or choose another results folder"
        )
    if not weights.about.resolved:
        _rename(session, weights, stored, alike)
    _warn_of_namesakes(stored, weights)
    return weights


def in_its_place(session: Session, stored: dict[str, Cell]) -> None:
    """Rename the data set of stored cells whose images lay in another folder: they are the same.

    Else the model would have two rows: what was measured before the folder was moved, and after.
    ``stored``: identity -> cell, of cells that are whole.
    """
    name = with_plain_paths(spec.shown(session.dataset))
    if without_paths(name) == name:
        return
    old = [
        cell
        for cell in stored.values()
        if cell.facts.get("data") == session.digest
        and cell.about.dataset != name
        and without_paths(cell.about.dataset) == without_paths(name)
    ]
    for cell in old:
        outcomes = session.store.outcomes(cell.id) if cell.outcomes else None
        moved = structs.replace(cell, about=structs.replace(cell.about, dataset=name))
        session.store.put(moved, outcomes)
        stored[cell.id] = moved
    if names := sorted({cell.about.dataset for cell in old}):
        session.reporter.say(
            f"the stored results of {'; '.join(names)} are now those of {name}: the images are the "
            "same"
        )


def _as_stored(session: Session, weights: Weights, alike: Sequence[Cell]) -> Weights:
    """The weights under the name that their stored cells have, if all have the same."""
    mine = _of_training(alike, weights)
    known = {(cell.about.label, cell.about.defense) for cell in mine}
    if len(known) != 1:
        return weights
    ((name, defense),) = known
    if name != weights.about.label:
        session.reporter.say(f"these weights are called {name!r} in {session.store.root}")
    return replace(weights, about=structs.replace(weights.about, label=name, defense=defense))


def _of_training(alike: Sequence[Cell], weights: Weights) -> list[Cell]:
    """The cells that name the same training, or none, as the weights do."""
    mine = [getattr(weights.about, name) for name in TRAINING]
    return [cell for cell in alike if mine == [getattr(cell.about, name) for name in TRAINING]]


def _rename(
    session: Session, weights: Weights, stored: Sequence[Cell], alike: Sequence[Cell]
) -> None:
    """Give the stored cells of the weights, and scores drawn from them, their name and seed."""
    about, mine = weights.about, _of_training(alike, weights)
    ids = {cell.id for cell in mine}
    mine += [cell for cell in stored if ids & {*cell.facts.get("cells", ())}]
    new = {"label": about.label, "defense": about.defense, "seed": about.seed}
    old = [cell for cell in mine if any(getattr(cell.about, key) != new[key] for key in new)]
    for cell in old:
        outcomes = session.store.outcomes(cell.id) if cell.outcomes else None
        session.store.put(structs.replace(cell, about=structs.replace(cell.about, **new)), outcomes)
    if names := sorted({f"{cell.about.label!r}, seed {cell.about.seed}" for cell in old}):
        session.reporter.say(
            f"the stored results of these weights, {'; '.join(names)}, are now those of "
            f"{about.label!r}, seed {about.seed}"
        )


def _warn_of_incomparable(model: Model) -> None:
    """Warn if stored cells are of a network of the user's own that may be another one by now."""
    if isinstance(model, ModuleModel) and model.made_by is not None and model.attributes.unknown:
        warnings.warn(
            f"stored numbers of {model.card.name} are taken: its code and weights are the same, "
            f"but {named(model.attributes.unknown)} cannot be compared: if it has changed, use "
            "another results folder",
            stacklevel=4,
        )


def _warn_of_namesakes(stored: Sequence[Cell], weights: Weights) -> None:
    """Warn if cells of other weights, code or images are in the same row of tables."""
    name, mine = weights.about.label, weights.facts
    row = [getattr(weights.about, key) for key in MODEL]
    same_row = [cell for cell in stored if row == [getattr(cell.about, key) for key in MODEL]]
    found = [cell.facts for cell in same_row if cell.facts.keys() >= {*NETWORK}]  # no scores
    of_weights = [facts for facts in found if facts["checkpoint"] == mine["checkpoint"]]
    of_network = [facts for facts in of_weights if facts["model"] == mine["model"]]
    said = []
    if len(of_weights) < len(found):
        said.append(
            f"results of another network are stored under the name {name!r}, and tables show the "
            "latest: give each a label of its own (--label, in Python label=), or a training seed "
            "(--training-seed, training_seed=)"
        )
    if len(of_network) < len(of_weights):
        said.append(
            f"results of the same weights in another network, or in this one before the file of "
            f"its class changed, are stored under the name {name!r}, and tables show the latest: "
            "give another network a label of its own, and keep the class of a network in a file "
            "that seldom changes"
        )
    if any(facts.get("data") != mine.get("data") for facts in of_network):
        said.append(
            f"results of {name!r} on other images of {weights.about.dataset} are stored, and "
            "tables show the latest: the data set has changed since"
        )
    for one in said:
        warnings.warn(one, stacklevel=4)
