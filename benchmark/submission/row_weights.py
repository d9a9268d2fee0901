"""The weights of a row: of the zoo or a file, as the network is built, or trained again."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from msgspec import structs

from dmlbench.analysis.lookup import DIGITS
from dmlbench.analysis.records import Record
from dmlbench.common.errors import UserError
from dmlbench.core import spec
from dmlbench.defenses.base import DEFENSES
from dmlbench.models.base import parse_model
from dmlbench.storage.checkpoint import stored_weights
from dmlbench.sweep import plan
from dmlbench.sweep.requests import parse_recipe
from dmlbench.sweep.session import Session
from dmlbench.sweep.tasks import Weights
from dmlbench.sweep.weights import checkpoint_weights, initial_weights
from dmlbench.training.job import Training
from dmlbench.zoo.fetch import zoo_folder
from dmlbench.zoo.registry import card_of


def weights_of(
    session: Session, row: Record, checkpoint: Path | None, retrain: bool, allow_code: bool
) -> tuple[Weights | Training, str]:
    """The weights of a row, or the training that gives them; and where they come from."""
    card = card_of(row["checkpoint_sha256"])
    if checkpoint is None and not retrain and card is not None:
        checkpoint = zoo_folder(card.name)
        how = f"the zoo's {card.name}"
    else:
        how = f"{checkpoint}"
    seed = row["seed"]
    if checkpoint is not None and not retrain:
        described = stored_weights(checkpoint).manifest is not None
        network = None if described else parse_model(row["model"])
        found = checkpoint_weights(
            session.dataset,
            session.digest,
            network,
            checkpoint,
            label=row["label"],
            seed=seed,
            compute=session.compute,
            allow_code=allow_code,
        )
        if found.facts["checkpoint"] != row["checkpoint_sha256"]:
            raise UserError(
                f"{checkpoint} holds other weights than the row (SHA-256 "
                f"{row['checkpoint_sha256'][:DIGITS]}...)"
            )
        return _in_row(found, row), how
    if not row["resolved"]:
        return _as_built(session, row), f"built by {row['model']}"
    try:
        defense = spec.parse(row["resolved"], DEFENSES)
    except UserError as error:
        raise UserError(
            f"{error} (a defense of a file is not in the row: name the weights with --checkpoint)"
        ) from None
    (training,) = plan.plan(
        session.dataset,
        session.digest,
        parse_model(row["model"]),
        [defense],
        [seed],
        parse_recipe(session.dataset, row["recipe"]),
    )
    trained = session.store.model_folder(training.id)
    return training, f"trained by the row's recipe, in {trained}"


def _in_row(weights: Weights, row: Record) -> Weights:
    """The weights with the seed of their row: early ones have that of the attacks there."""
    return replace(weights, about=structs.replace(weights.about, seed=row["seed"]))


def _as_built(session: Session, row: Record) -> Weights:
    """The weights of a network that was measured as it is published, or as its code builds it.

    Raises:
        UserError: the row is of other weights, of which it does not say how they were trained.
    """
    model, compute = parse_model(row["model"]), session.compute
    known = (session.dataset, session.data, model, row["label"], row["seed"], compute)
    try:
        with warnings.catch_warnings(action="ignore"):  # of random weights
            found = initial_weights(*known)
    except UserError as error:
        reason = f", and {error}"
    else:
        if found.facts["checkpoint"] == row["checkpoint_sha256"]:
            return _in_row(found, row)
        reason = f", and {row['model']} builds other weights or attributes"
    raise UserError(
        f"the row of {row['label']} does not say how it was trained{reason}: name its weights with "
        "--checkpoint"
    )
