"""``train`` and ``run``: train models with defenses, and measure them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmlbench.api.load import load_model
from dmlbench.api.report import Report
from dmlbench.api.session import attacks_of, dataset_of, names_of, opened, seeds_of
from dmlbench.attacks.base import Attack
from dmlbench.datasets.base import Dataset
from dmlbench.defenses.base import DEFENSES, Defense
from dmlbench.models.base import parse_model
from dmlbench.sweep import plan
from dmlbench.sweep.requests import parse_all, parse_recipe
from dmlbench.sweep.run import RunOptions
from dmlbench.sweep.run import run as run_sweep
from dmlbench.sweep.session import sound_manifest

if TYPE_CHECKING:
    from dmlbench.compute.embedding import EmbeddingModel


def train(
    defense: str | Defense,
    dataset: str | Dataset = "fashion-mini",
    *,
    model: str | None = None,
    recipe: str | Mapping[str, Any] = "",
    seed: int = 0,
    validate: int = 0,
    results: str | Path = "results",
    device: str = "auto",
    threads: int | None = None,
    data_root: str | Path | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
) -> EmbeddingModel:
    """Train one model with a defense, or load it if ``results`` has it already.

    An interrupted training goes on after its last finished epoch. Arguments that are not listed
    here are those of ``dmlbench.evaluate``.

    Args:
        defense: spec of a defense, such as ``"none"`` or ``"hm:eta=8"``.
        dataset: spec of a data set, or what ``dmlbench.from_arrays`` made.
        model: spec of the network; None: the data set's.
        recipe: changes to the data set's recipe: ``"epochs=2"`` or ``{"epochs": 2}``.
        seed: of initialisation, batches and mining.
        validate: measure R@1 on the clean test split every so many epochs; 0: never.
        results: the results folder that the model is kept in.

    Returns:
        The trained network on the CPU, in eval mode: images (B, C, H, W) in [0, 1] to embeddings
        (B, D). ``dmlbench.evaluate`` takes it as it is.

    Raises:
        UserError: an argument that is wrong, data that are missing.
        CellError: the training diverged.
    """
    from dmlbench.training.trainer import Monitoring
    from dmlbench.training.trainer import train as train_model

    chosen = dataset_of(dataset)
    wanted = parse_all([defense], DEFENSES)
    network = parse_model(model or chosen.protocol.model)
    settings = parse_recipe(chosen, recipe)
    monitoring = Monitoring(validate)
    with opened(
        chosen, results, data_root, cache, device=device, threads=threads, progress=progress
    ) as session:
        (training,) = plan.plan(
            chosen, session.digest, network, wanted, [seed], session.fitted(settings)
        )
        folder = session.store.model_folder(training.id)
        sound_manifest(session, training)  # a damaged model is set aside
        train_model(training, session.data, folder, session.compute, session.reporter, monitoring)
        shape = session.data.channels, session.data.size
    return load_model(folder, image_shape=shape, allow_code=True)


def run(
    defenses: str | Defense | Sequence[str | Defense],
    attacks: str | Attack | Sequence[str | Attack] | None = None,
    suite: str | Sequence[str] | None = None,
    dataset: str | Dataset = "fashion-mini",
    *,
    model: str | None = None,
    recipe: str | Mapping[str, Any] = "",
    seeds: Sequence[int] = (0,),
    queries: int | None = None,
    recalls: bool = False,
    resume: str = "retry-failed",
    workers: int | None = None,
    results: str | Path | None = "results",
    device: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    precision: str = "fp32",
    eot: int = 1,
    data_root: str | Path | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Report:
    """Train each defense and measure it, as ``dmlbench run`` does; the undefended model too.

    What ``results`` holds already is not done again, so a run that was stopped goes on when it is
    called again. Arguments that are not listed here are those of ``dmlbench.evaluate``.

    Args:
        defenses: specs of defenses, such as ``"hm"`` or ``["est", "hm:eta=8"]``; ``"all"``: every
            registered one.
        model: spec of the network; None: the data set's.
        recipe: changes to the data set's recipe: ``"epochs=2"`` or ``{"epochs": 2}``.
        seeds: of trainings and targets.
        resume: which stored cells are taken: ``"retry-failed"``, ``"only-missing"``, ``"always"``
            or ``"never"`` (``dmlbench run --help`` explains them).
        workers: processes at once; None: one. They import the script that calls this, which must
            therefore call it below ``if __name__ == "__main__":``.
        results: the results folder; None: nothing is stored.

    Returns:
        The numbers of all models. What failed is in ``report.failed``.

    Raises:
        UserError: an argument that is wrong, data that are missing.
    """
    chosen = dataset_of(dataset)
    wanted = parse_all(["none", *names_of("defenses", defenses, Defense)], DEFENSES)
    attacked = attacks_of(attacks, suite)
    network = parse_model(model or chosen.protocol.model)
    settings = parse_recipe(chosen, recipe)
    options = RunOptions(resume=resume, workers=workers)
    with opened(
        chosen,
        results,
        data_root,
        cache,
        device=device,
        batch_size=batch_size,
        threads=threads,
        precision=precision,
        eot=eot,
        progress=progress,
    ) as session:
        session.check_queries(queries)
        planned = plan.planned_attacks(attacked, chosen.protocol.threat, queries, recalls)
        trainings = plan.plan(
            chosen, session.digest, network, wanted, seeds_of(seeds), session.fitted(settings)
        )
        asked = {
            "queries": queries,
            "recalls": recalls,
            "resume": resume,
            "workers": workers,
            "results": results,
            "data_root": data_root,
            "cache": cache,
            "device": device,
            "batch_size": batch_size,
            "threads": threads,
            "precision": precision,
            "eot": eot,
        }
        repeatable = isinstance(dataset, str)  # arrays are not on the disk
        cells = run_sweep(session, trainings, planned, options, asked if repeatable else None)
        return Report.of(cells, session.store)
